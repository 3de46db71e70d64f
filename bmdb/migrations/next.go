// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build bmdb_next

// This file is in no program that is released. With the tag bmdb_next the library is one schema version ahead of itself, so that a test
// can let pods of two versions work side by side before there is a migration that they differ by.

package migrations

import (
	"fmt"
	"io/fs"
	"slices"
	"testing/fstest"
)

// Latest is the number of the last migration, and the newest schema that this version of the library knows.
const Latest = last + 1

// FS holds the migrations, NNNN_slug.sql, in the order of their numbers, and one more. It is not changed.
var FS fs.FS = next{files, fstest.MapFS{nextName: {Data: []byte(nextMigration), Mode: 0o444}}}

var nextName = fmt.Sprintf("%04d_next.sql", Latest)

// The table is the busiest that there is, and the statements that pods have prepared know the one without the column.
const nextMigration = `-- +goose NO TRANSACTION
-- +goose Up
ALTER TABLE work ADD COLUMN IF NOT EXISTS next_version TEXT NOT NULL DEFAULT '';
`

// next is a directory with the files of both.
type next struct {
	fs.ReadDirFS
	more fstest.MapFS
}

// Open implements fs.FS.
func (n next) Open(name string) (fs.File, error) {
	if _, ok := n.more[name]; ok {
		return n.more.Open(name)
	}
	return n.ReadDirFS.Open(name)
}

// ReadDir implements fs.ReadDirFS.
func (n next) ReadDir(name string) ([]fs.DirEntry, error) {
	entries, err := n.ReadDirFS.ReadDir(name)
	if err != nil || name != "." {
		return entries, err
	}
	more, err := n.more.ReadDir(name)
	entries = append(entries, more...)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int {
		switch {
		case a.Name() < b.Name():
			return -1
		case a.Name() > b.Name():
			return 1
		}
		return 0
	})
	return entries, err
}
