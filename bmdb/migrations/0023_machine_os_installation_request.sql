-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- Tag OSInstallationRequest: which operating system is wanted, by generation.
CREATE TABLE IF NOT EXISTS machine_os_installation_request (
    machine_id                  UUID PRIMARY KEY REFERENCES machines (machine_id),
    generation                  BIGINT NOT NULL,
    os_installation_request_raw BYTEA NOT NULL
);
