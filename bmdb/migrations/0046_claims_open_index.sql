-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS claims_open ON claims (pool, claim_key) WHERE state = 'Running';
