-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- A limit on works at once; no row: no limit. limit_id is provider/POOL/PROVIDER.
CREATE TABLE IF NOT EXISTS limits (
    limit_id TEXT PRIMARY KEY,
    maximum  BIGINT NOT NULL,
    CHECK (maximum >= 0)
);
