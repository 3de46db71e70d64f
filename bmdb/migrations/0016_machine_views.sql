-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The object of each cluster that shows a machine. A machine that had views and has none attached is not retrievable (the fact ViewLost).
CREATE TABLE IF NOT EXISTS machine_views (
    machine_id  UUID NOT NULL REFERENCES machines (machine_id),
    cluster     TEXT NOT NULL,
    pool        TEXT NOT NULL,
    name        TEXT NOT NULL,
    uid         TEXT NOT NULL,
    manages     BOOLEAN NOT NULL,
    attached    BOOLEAN NOT NULL,
    changed_at  TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (machine_id, cluster)
);
