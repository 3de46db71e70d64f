-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- A limit on works at once; no row: no limit. limit_id is provider/POOL/PROVIDER. While settles_at is set, all slots are closed: a start that has not seen the limit
-- may still be under way, and works that it does not count would make it inexact.
CREATE TABLE IF NOT EXISTS limits (
    limit_id   TEXT PRIMARY KEY,
    maximum    BIGINT NOT NULL,
    settles_at TIMESTAMPTZ,
    CHECK (maximum >= 0)
);
