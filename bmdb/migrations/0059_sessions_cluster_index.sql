-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Whether a cluster has had a session lately: who manages in its stead depends on it.
CREATE INDEX IF NOT EXISTS sessions_cluster ON sessions (session_cluster, session_ended_at);
