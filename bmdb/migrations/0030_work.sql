-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- One row per (machine, process), made when there is something to say. state: 0 idle, 1 waiting until not_before, 2 ready, 3 claimed by work_id.
-- work_id is the fencing token: an end that does not find it changes nothing. session_id, claim_key, fence, attempt and started_at stay behind after the end.
-- slot, pool and provider are copies that do not change while the row is claimed. checkpoint is what the worker was about to do; the next one reads it first.
CREATE TABLE IF NOT EXISTS work (
    machine_id       UUID NOT NULL REFERENCES machines (machine_id),
    process          TEXT NOT NULL,
    slot             TEXT NOT NULL,
    pool             TEXT NOT NULL,
    provider         TEXT NOT NULL,
    state            BIGINT NOT NULL DEFAULT 0,
    not_before       TIMESTAMPTZ,
    work_id          UUID,
    session_id       UUID,
    claim_key        TEXT NOT NULL DEFAULT '',
    fence            BIGINT NOT NULL DEFAULT 0,
    attempt          BIGINT NOT NULL DEFAULT 0,
    started_at       TIMESTAMPTZ,
    deadline         TIMESTAMPTZ,
    step             TEXT NOT NULL DEFAULT '',
    percent          BIGINT NOT NULL DEFAULT 0,
    checkpoint       BYTEA,
    backoff_seconds  BIGINT NOT NULL DEFAULT 0,
    backoff_until    TIMESTAMPTZ,
    backoff_cause    TEXT NOT NULL DEFAULT '',
    backoff_attempts BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (machine_id, process),
    CHECK (state BETWEEN 0 AND 3),
    CHECK ((state = 3) = (work_id IS NOT NULL)),
    CHECK (work_id IS NULL OR session_id IS NOT NULL),
    CHECK (state <> 1 OR not_before IS NOT NULL)
);
