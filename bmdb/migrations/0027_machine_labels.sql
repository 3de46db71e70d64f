-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Labels mirrored from the managing view, for selection.
CREATE TABLE IF NOT EXISTS machine_labels (
    machine_id UUID NOT NULL REFERENCES machines (machine_id),
    key        TEXT NOT NULL,
    value      TEXT NOT NULL,
    pool       TEXT NOT NULL,
    PRIMARY KEY (machine_id, key)
);
