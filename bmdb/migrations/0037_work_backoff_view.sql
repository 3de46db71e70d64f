-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
CREATE OR REPLACE VIEW work_backoff AS
    SELECT machine_id, process, backoff_until AS until, backoff_cause AS cause, backoff_seconds AS last_interval_seconds
    FROM work WHERE backoff_seconds > 0;
