-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS session_leases_deadline ON session_leases (deadline);
