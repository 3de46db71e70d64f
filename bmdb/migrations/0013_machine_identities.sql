-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- By which name and address a recorded machine is known, and the SSH host key that is pinned to it (wire format).
-- owner_accepted_at: a person accepted that the host is this machine, whatever its owner file says; the next work uses that up.
CREATE TABLE IF NOT EXISTS machine_identities (
    machine_id        UUID PRIMARY KEY REFERENCES machines (machine_id),
    pool              TEXT NOT NULL,
    name              TEXT NOT NULL,
    provider          TEXT NOT NULL,
    address           TEXT NOT NULL,
    host_key          BYTEA,
    host_key_set_at   TIMESTAMPTZ,
    owner_accepted_at TIMESTAMPTZ
);
