-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Other databases whose rows objects may still show: a person has said that this one counts in their stead. incarnation is the last of the other that
-- objects showed then: what it became after that speaks again.
CREATE TABLE IF NOT EXISTS database_acknowledgements (
    database_id     UUID PRIMARY KEY,
    incarnation     BIGINT NOT NULL,
    acknowledged_at TIMESTAMPTZ NOT NULL,
    actor           TEXT NOT NULL
);
