-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- What a claim did to a machine. finished_work_id is what makes once mean once: an end that finds it set is no second Finished.
CREATE TABLE IF NOT EXISTS claim_machines (
    pool                TEXT NOT NULL,
    claim_key           TEXT NOT NULL,
    machine_id          UUID NOT NULL,
    attempts            BIGINT NOT NULL DEFAULT 0,
    losses              BIGINT NOT NULL DEFAULT 0,
    finished_work_id    UUID,
    quarantined_work_id UUID,
    quarantined_at      TIMESTAMPTZ,
    skipped             BOOLEAN NOT NULL DEFAULT false,
    cause               TEXT NOT NULL DEFAULT '',
    changed_at          TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (pool, claim_key, machine_id)
);
