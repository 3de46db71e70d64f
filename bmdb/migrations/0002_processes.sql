-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- What a kind of work needs of a machine and what it leaves behind: the predicate is data. pool '' means every pool.
-- Only indexed processes have ready rows; the others are started through a caller's retriever alone.
-- fill_pass: 0 every machine was evaluated against this generation; 1, 2 the first or second pass over the fleet goes on at fill_cursor.
CREATE TABLE IF NOT EXISTS processes (
    pool            TEXT NOT NULL,
    process         TEXT NOT NULL,
    slot            TEXT NOT NULL,
    requires        TEXT[] NOT NULL,
    forbids         TEXT[] NOT NULL,
    sets            TEXT[] NOT NULL,
    clears          TEXT[] NOT NULL,
    destructive     BOOLEAN NOT NULL,
    convergent      BOOLEAN NOT NULL,
    indexed         BOOLEAN NOT NULL,
    generation      BIGINT NOT NULL,
    fill_pass       BIGINT NOT NULL,
    fill_cursor     UUID,
    fill_not_before TIMESTAMPTZ,
    PRIMARY KEY (pool, process),
    CHECK (fill_pass BETWEEN 0 AND 2)
);
