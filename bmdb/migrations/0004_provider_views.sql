-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The ProviderConfig of each cluster; of several views' limits the smaller counts.
CREATE TABLE IF NOT EXISTS provider_views (
    pool         TEXT NOT NULL,
    provider     TEXT NOT NULL,
    cluster      TEXT NOT NULL,
    uid          TEXT NOT NULL,
    manages      BOOLEAN NOT NULL,
    max_machines BIGINT,
    parallelism  BIGINT,
    PRIMARY KEY (pool, provider, cluster)
);
