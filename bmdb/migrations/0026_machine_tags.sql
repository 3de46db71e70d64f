-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tags that users define.
CREATE TABLE IF NOT EXISTS machine_tags (
    machine_id UUID NOT NULL REFERENCES machines (machine_id),
    tag        TEXT NOT NULL,
    tag_set_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (machine_id, tag)
);
