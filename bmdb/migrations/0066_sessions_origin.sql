-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- session_origin: the API server that the program's objects are in, so that views of a former one can be given up while the cluster lives. Empty: not
-- known, or of a version that did not say so.
ALTER TABLE sessions ADD COLUMN IF NOT EXISTS session_origin TEXT NOT NULL DEFAULT '';
