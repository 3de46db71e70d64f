// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package migrations holds the schema of the Bare Metal Database: one idempotent schema change in each file, none in a
// transaction, in the subset of SQL that PostgreSQL and CockroachDB share.
package migrations

import "embed"

// FS holds the migrations, NNNN_slug.sql, in the order of their numbers.
//
//go:embed *.sql
var FS embed.FS

const (
	// Latest is the number of the last migration, and the newest schema that this version of the library works with.
	Latest = 59
	// Minimum is the oldest schema that this version of the library works with.
	Minimum = 59
)
