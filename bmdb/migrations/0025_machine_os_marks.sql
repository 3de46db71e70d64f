-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- The highest generation ever reported for a machine; it never falls, whatever becomes of the report.
CREATE TABLE IF NOT EXISTS machine_os_marks (
    machine_id UUID PRIMARY KEY REFERENCES machines (machine_id),
    generation BIGINT NOT NULL
);
