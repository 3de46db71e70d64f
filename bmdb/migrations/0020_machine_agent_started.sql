-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tag AgentStarted: an agent was started on the machine and this is its ed25519 public key.
CREATE TABLE IF NOT EXISTS machine_agent_started (
    machine_id       UUID PRIMARY KEY REFERENCES machines (machine_id),
    agent_started_at TIMESTAMPTZ NOT NULL,
    agent_public_key BYTEA NOT NULL
);
