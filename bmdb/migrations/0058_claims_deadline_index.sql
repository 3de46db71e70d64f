-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Claims that end at a deadline, also when nobody owns them.
CREATE INDEX IF NOT EXISTS claims_deadline ON claims (deadline_at) WHERE state = 'Running' AND deadline_at IS NOT NULL;
