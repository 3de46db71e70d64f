-- Copyright The BMDB Operator Authors.
-- SPDX-License-Identifier: Apache-2.0

-- +goose NO TRANSACTION
-- +goose Up
-- One row: who this database is. database_id is made once and copied into the status of every object, so that another
-- database behind the same URL is noticed; incarnation is raised by a person who restored it from an older copy.
CREATE TABLE IF NOT EXISTS database_identity (
    singleton   BIGINT PRIMARY KEY CHECK (singleton = 1),
    database_id UUID NOT NULL,
    incarnation BIGINT NOT NULL,
    created_at  TIMESTAMPTZ NOT NULL
);
