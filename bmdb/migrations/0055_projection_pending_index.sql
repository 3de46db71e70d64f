-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX IF NOT EXISTS projection_pending ON projection (cluster, kind, pool, id) WHERE rev <> done_rev;
