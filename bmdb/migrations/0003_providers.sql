-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- A provider and how many machines are recorded for it. max_machines NULL: no limit. The row is the mutex of that count.
-- The row of pool '' is the mutex of the registration of new machines: one box is never two rows, whatever their pools.
CREATE TABLE IF NOT EXISTS providers (
    pool         TEXT NOT NULL,
    provider     TEXT NOT NULL,
    machines     BIGINT NOT NULL DEFAULT 0,
    max_machines BIGINT,
    rev          BIGINT NOT NULL DEFAULT 1,
    spread_rev   BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (pool, provider),
    CHECK (machines >= 0)
);
