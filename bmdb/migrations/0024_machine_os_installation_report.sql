-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tag OSInstallationReport: the last installation that was reported. os_installation_result is Success or Error.
CREATE TABLE IF NOT EXISTS machine_os_installation_report (
    machine_id                 UUID PRIMARY KEY REFERENCES machines (machine_id),
    generation                 BIGINT NOT NULL,
    os_installation_result     TEXT NOT NULL,
    os_installation_report_raw BYTEA NOT NULL
);
