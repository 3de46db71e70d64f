-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Finds a provider's machine in whatever pool.
CREATE INDEX IF NOT EXISTS machine_provided_everywhere ON machine_provided (provider_id, provider);
