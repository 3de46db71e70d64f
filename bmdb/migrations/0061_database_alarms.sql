-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Objects that were shown another database's rows, or later revisions than this one has: what speaks against it, until a person acknowledges it. While
-- a pool has one, no destructive process starts there. id: a machine's ID, a claim's key, a provider's name.
CREATE TABLE IF NOT EXISTS database_alarms (
    pool        TEXT NOT NULL,
    kind        TEXT NOT NULL,
    id          TEXT NOT NULL,
    cluster     TEXT NOT NULL,
    reason      TEXT NOT NULL,
    database_id UUID NOT NULL,
    revision    BIGINT NOT NULL,
    noticed_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (pool, kind, id, cluster),
    CHECK (reason IN ('DatabaseChanged', 'DatabaseRewound'))
);
