// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package migrations holds the schema of the Bare Metal Database: one idempotent schema change in each file, none in a
// transaction, in the subset of SQL that PostgreSQL and CockroachDB share.
//
// Two versions of the library work side by side while pods are replaced, in either direction. That is why a migration adds: columns with
// a default or without a value, tables, indexes. What it takes away or makes stricter, the version before must not use any more; a
// version that brings such a migration raises Oldest.
package migrations

import "embed"

//go:embed *.sql
var files embed.FS

// last is the number of the last file.
const last = 66

const (
	// Minimum is the oldest schema that this version of the library works with.
	Minimum = 66
	// Oldest is what Migrate writes into the schema for older code: the library works with a schema that is newer than its own Latest if
	// its Latest is not below that.
	Oldest = 62
	// Compatibility is the migration from which on a schema says so.
	Compatibility = 60
)
