-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tag HardwareReport: the agent's inventory.
CREATE TABLE IF NOT EXISTS machine_hardware_report (
    machine_id          UUID PRIMARY KEY REFERENCES machines (machine_id),
    hardware_report_raw BYTEA NOT NULL
);
