-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The clusters that show machines and claims. A cluster registers before it lists, so nothing falls between.
CREATE TABLE IF NOT EXISTS clusters (
    cluster       TEXT PRIMARY KEY,
    registered_at TIMESTAMPTZ NOT NULL,
    seen_at       TIMESTAMPTZ NOT NULL
);
