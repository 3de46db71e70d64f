-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Start (phase 0) and end (phase 1) of every work: the primary key allows one end. Kept by age; nothing is decided from it.
CREATE TABLE IF NOT EXISTS work_history (
    machine_id   UUID NOT NULL,
    work_id      UUID NOT NULL,
    phase        BIGINT NOT NULL,
    process      TEXT NOT NULL,
    event        TEXT NOT NULL,
    timestamp    TIMESTAMPTZ NOT NULL,
    failed_cause TEXT,
    session_id   UUID NOT NULL,
    pool         TEXT NOT NULL,
    claim_key    TEXT NOT NULL,
    fence        BIGINT NOT NULL,
    attempt      BIGINT NOT NULL,
    duration_ms  BIGINT NOT NULL,
    actor        TEXT NOT NULL,
    PRIMARY KEY (machine_id, work_id, phase),
    CHECK (phase IN (0, 1)),
    CHECK ((phase = 0) = (event = 'Started')),
    CHECK (event IN ('Started', 'Finished', 'Failed', 'Canceled', 'Lost', 'Released'))
);
