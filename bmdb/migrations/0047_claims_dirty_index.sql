-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS claims_dirty ON claims (pool, claim_key) WHERE rev <> spread_rev;
