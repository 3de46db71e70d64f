-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Identity and end of a session. Written at its start and at its end and never by a beat, so that everything that starts work can share-lock it.
-- session_claims_only: it starts work for claims it owns, and no other.
CREATE TABLE IF NOT EXISTS sessions (
    session_id             UUID PRIMARY KEY,
    session_component_name TEXT NOT NULL,
    session_runtime_info   TEXT NOT NULL,
    session_cluster        TEXT NOT NULL,
    session_claims_only    BOOLEAN NOT NULL,
    session_created_at     TIMESTAMPTZ NOT NULL,
    session_lease_ms       BIGINT NOT NULL,
    session_ended_at       TIMESTAMPTZ,
    session_end_reason     TEXT
);
