-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS machine_labels_value ON machine_labels (pool, key, value, machine_id);
