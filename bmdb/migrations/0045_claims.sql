-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- A claim by its key, for ever. state Detached: its last view went; it goes on when a view comes back. Complete and Failed are final.
-- active is raised where owner, epoch, state and room allow it, and lowered by every end, whoever ends.
-- selected is how many machines the last review found selected, unneeded how many of these needed nothing that the claim had not done itself.
-- reason and message are the last outlook that the owner wrote: why nothing more can be started now, or how the claim ended.
CREATE TABLE IF NOT EXISTS claims (
    pool                    TEXT NOT NULL,
    claim_key               TEXT NOT NULL,
    spec_hash               TEXT NOT NULL,
    process                 TEXT NOT NULL,
    mode                    TEXT NOT NULL,
    selection               TEXT NOT NULL,
    parameters              TEXT NOT NULL,
    completions             BIGINT,
    parallelism             BIGINT NOT NULL,
    timeout_seconds         BIGINT NOT NULL,
    active_deadline_seconds BIGINT,
    max_attempts            BIGINT NOT NULL,
    max_failed_machines     BIGINT,
    backoff_initial_seconds BIGINT NOT NULL,
    backoff_maximum_seconds BIGINT NOT NULL,
    suspended               BOOLEAN NOT NULL,
    state                   TEXT NOT NULL,
    reason                  TEXT NOT NULL DEFAULT '',
    message                 TEXT NOT NULL DEFAULT '',
    owner_session           UUID,
    owner_epoch             BIGINT NOT NULL DEFAULT 0,
    active                  BIGINT NOT NULL DEFAULT 0,
    succeeded               BIGINT NOT NULL DEFAULT 0,
    failed                  BIGINT NOT NULL DEFAULT 0,
    skipped                 BIGINT NOT NULL DEFAULT 0,
    selected                BIGINT NOT NULL DEFAULT 0,
    unneeded                BIGINT NOT NULL DEFAULT 0,
    rev                     BIGINT NOT NULL DEFAULT 1,
    spread_rev              BIGINT NOT NULL DEFAULT 0,
    created_at              TIMESTAMPTZ NOT NULL,
    started_at              TIMESTAMPTZ,
    deadline_at             TIMESTAMPTZ,
    completed_at            TIMESTAMPTZ,
    PRIMARY KEY (pool, claim_key),
    CHECK (mode IN ('Once', 'Drain', 'Continuous')),
    CHECK (state IN ('Running', 'Detached', 'Complete', 'Failed')),
    CHECK (active >= 0),
    CHECK (succeeded >= 0),
    CHECK (failed >= 0),
    CHECK (skipped >= 0)
);
