-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS claim_machines_trouble ON claim_machines (pool, claim_key, changed_at) WHERE cause <> '';
