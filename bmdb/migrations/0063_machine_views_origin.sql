-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- origin: the API server that the object was in, so that an empty one which is given the cluster's ID does not end the view. Empty: not known.
ALTER TABLE machine_views ADD COLUMN IF NOT EXISTS origin TEXT NOT NULL DEFAULT '';
