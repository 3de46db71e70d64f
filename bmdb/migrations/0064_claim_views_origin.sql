-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE claim_views ADD COLUMN IF NOT EXISTS origin TEXT NOT NULL DEFAULT '';
