// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !bmdb_next

package migrations

import "io/fs"

// FS holds the migrations, NNNN_slug.sql, in the order of their numbers. It is not changed.
var FS fs.FS = files

// Latest is the number of the last migration, and the newest schema that this version of the library knows.
const Latest = last
