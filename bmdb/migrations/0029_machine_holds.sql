-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Nobody starts work on a machine that has a hold whose held_until is NULL or has not come, by the database's clock.
CREATE TABLE IF NOT EXISTS machine_holds (
    machine_id UUID NOT NULL REFERENCES machines (machine_id),
    hold_name  TEXT NOT NULL,
    pool       TEXT NOT NULL,
    reason     TEXT NOT NULL,
    owner      TEXT NOT NULL,
    held_until TIMESTAMPTZ,
    held_at    TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (machine_id, hold_name)
);
