-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The mutex of a machine, written first (rev = rev + 1) by every transaction that starts or ends work, holds, or changes a fact; its change feed; its fencing number.
-- facts are derived from the tag tables by the recompute and by nothing else. held_until: NULL not held, 9999-12-31 held without an end.
-- unresponsive_at: when the fact AgentUnresponsive becomes true if no heartbeat comes; NULL never.
CREATE TABLE IF NOT EXISTS machine_state (
    machine_id      UUID PRIMARY KEY REFERENCES machines (machine_id),
    pool            TEXT NOT NULL,
    provider        TEXT NOT NULL DEFAULT '',
    rev             BIGINT NOT NULL DEFAULT 1,
    spread_rev      BIGINT NOT NULL DEFAULT 0,
    facts           TEXT[] NOT NULL DEFAULT '{}',
    held_until      TIMESTAMPTZ,
    unresponsive_at TIMESTAMPTZ
);
