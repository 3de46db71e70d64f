-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- A physical machine. Never updated: it is what everything else refers to.
CREATE TABLE IF NOT EXISTS machines (
    machine_id         UUID PRIMARY KEY,
    machine_created_at TIMESTAMPTZ NOT NULL
);
