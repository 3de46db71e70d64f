-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- What the schema says of older code. oldest: the last migration that code must know at least to work with the schema as it is. It only
-- grows, and is raised before the migrations that make it necessary.
CREATE TABLE IF NOT EXISTS schema_compatibility (
    singleton BIGINT PRIMARY KEY,
    oldest    BIGINT NOT NULL,
    CHECK (singleton = 1)
);
