-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The object of each cluster for a claim. runnable: the cluster has a Ready provider for it, so its pods may own the claim.
CREATE TABLE IF NOT EXISTS claim_views (
    pool       TEXT NOT NULL,
    claim_key  TEXT NOT NULL,
    cluster    TEXT NOT NULL,
    name       TEXT NOT NULL,
    uid        TEXT NOT NULL,
    manages    BOOLEAN NOT NULL,
    suspended  BOOLEAN NOT NULL,
    runnable   BOOLEAN NOT NULL,
    PRIMARY KEY (pool, claim_key, cluster)
);
