-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The only row that a beat writes. It goes when the session ends. What has expired is only permission to end the session; ending it is a write.
CREATE TABLE IF NOT EXISTS session_leases (
    session_id UUID PRIMARY KEY,
    deadline   TIMESTAMPTZ NOT NULL
);
