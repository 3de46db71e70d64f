-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tag Provided: the machine exists at a provider. Its identity is (pool, provider, provider_id).
CREATE TABLE IF NOT EXISTS machine_provided (
    machine_id              UUID PRIMARY KEY REFERENCES machines (machine_id),
    provider                TEXT NOT NULL,
    provider_id             TEXT NOT NULL,
    pool                    TEXT NOT NULL,
    provider_reservation_id TEXT,
    provider_ip_address     TEXT,
    provider_location       TEXT,
    provider_status         TEXT
);
