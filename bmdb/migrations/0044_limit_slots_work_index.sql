-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE UNIQUE INDEX IF NOT EXISTS limit_slots_work ON limit_slots (work_id, limit_id) WHERE work_id IS NOT NULL;
