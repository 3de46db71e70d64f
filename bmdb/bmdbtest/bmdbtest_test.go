// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdbtest

import (
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

// TestTemplateMadeByManyAtOnce: processes that need the same template at the same moment, as the tests of several packages do, all get it, and
// one of them makes it. Nothing that they share is in this process.
func TestTemplateMadeByManyAtOnce(t *testing.T) {
	t.Parallel()
	admin, err := postgres.Shared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	connect := func() *pgx.Conn {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), admin)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(t.Context()) })
		return conn
	}
	digest := strings.ReplaceAll(uuid.NewString(), "-", "")
	look := connect()
	if _, err := look.Exec(t.Context(), "CREATE DATABASE bmdb_draft_"+digest); err != nil { // of one that was killed
		t.Fatal(err)
	}
	const processes = 4
	errs := make([]error, processes)
	var all sync.WaitGroup
	for i := range errs {
		conn := connect()
		all.Go(func() { errs[i] = makeTemplate(t.Context(), conn, admin, digest) })
	}
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Errorf("process %d: %v", i, err)
		}
	}
	var databases []string
	rows, err := look.Query(t.Context(), "SELECT datname FROM pg_database WHERE datname LIKE '%' || $1", digest)
	if err == nil {
		databases, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || len(databases) != 1 || databases[0] != "bmdb_template_"+digest {
		t.Errorf("there are %v, want the template alone: %v", databases, err)
	}
	if err := drop(t.Context(), admin, "bmdb_template_"+digest); err != nil {
		t.Error(err)
	}
}
