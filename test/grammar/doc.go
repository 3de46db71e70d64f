// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package grammar holds every migration, query and statement of the library to CockroachDB's own grammar, and to the rules that keep one
// text of SQL good for both databases. It is a module of its own, because that grammar takes minutes to compile:
//
//	cd test/grammar && go test ./...
//
// It reads the library's source and runs none of it. The grammar says nothing of what a statement means or costs on CockroachDB.
package grammar
