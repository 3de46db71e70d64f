-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS work_claim ON work (pool, claim_key, started_at) WHERE work_id IS NOT NULL;
