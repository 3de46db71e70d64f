-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tag AgentHeartbeat: when the agent was last heard of.
CREATE TABLE IF NOT EXISTS machine_agent_heartbeat (
    machine_id         UUID PRIMARY KEY REFERENCES machines (machine_id),
    agent_heartbeat_at TIMESTAMPTZ NOT NULL
);
