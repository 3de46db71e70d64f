-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- What a cluster has still to show: rev <> done_rev. kind machine: id is the machine ID; kind claim: id is the key; kind provider: id is the name.
CREATE TABLE IF NOT EXISTS projection (
    cluster  TEXT NOT NULL,
    kind     TEXT NOT NULL,
    pool     TEXT NOT NULL,
    id       TEXT NOT NULL,
    rev      BIGINT NOT NULL,
    done_rev BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (cluster, kind, pool, id)
);
