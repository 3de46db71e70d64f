// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package wire_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/wire"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.CloseShared(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "close the test server:", err)
		code = 1
	}
	os.Exit(code)
}

// A batch is one round trip however many statements it has, and what begins and ends a transaction is no statement.
func TestCounts(t *testing.T) {
	url, err := postgres.Shared(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	counter, err := wire.Listen(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer counter.Close()
	conn, err := pgx.Connect(t.Context(), counter.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	batch := func() {
		b := &pgx.Batch{}
		for _, sql := range []string{"BEGIN", "SELECT 1", "SELECT 2", "COMMIT"} {
			b.Queue(sql)
		}
		if err := conn.SendBatch(t.Context(), b).Close(); err != nil {
			t.Fatal(err)
		}
	}
	batch() // statements are prepared once
	before := counter.Counts()
	batch()
	if got, want := counter.Counts().Sub(before), (wire.Counts{RoundTrips: 1, Statements: 2}); got != want {
		t.Errorf("a batch is %+v, want %+v", got, want)
	}
	if got := counter.Matching("SELECT 2"); got != 2 {
		t.Errorf("SELECT 2 was sent %d times, want 2", got)
	}
	if texts := counter.Texts(); texts["SELECT 1"] != 2 || texts["BEGIN"] != 0 {
		t.Errorf("statements are %v", texts)
	}
}

func TestListenRefusesTLS(t *testing.T) {
	if _, err := wire.Listen(t.Context(), "postgresql://user@127.0.0.1:5432/db?sslmode=verify-full"); !errors.Is(err, wire.ErrTLS) {
		t.Errorf("Listen() = %v, want %v", err, wire.ErrTLS)
	}
}
