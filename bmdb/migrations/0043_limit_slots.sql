-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- One row per unit of a limit, taken in the statement that starts work. Lowering closes rows: the row that a start locks is the one that it is judged by, so the limit is exact.
CREATE TABLE IF NOT EXISTS limit_slots (
    limit_id TEXT NOT NULL,
    n        BIGINT NOT NULL,
    open     BOOLEAN NOT NULL,
    work_id  UUID,
    PRIMARY KEY (limit_id, n)
);
