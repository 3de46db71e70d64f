-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Everything that is no work: holds and releases, takeovers of claims and roles, pins accepted by hand, retries by hand.
CREATE TABLE IF NOT EXISTS audit_log (
    event_id   UUID PRIMARY KEY,
    at         TIMESTAMPTZ NOT NULL,
    pool       TEXT NOT NULL,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    machine_id UUID,
    event      TEXT NOT NULL,
    actor      TEXT NOT NULL,
    session_id UUID,
    cluster    TEXT NOT NULL,
    cause      TEXT NOT NULL
);
