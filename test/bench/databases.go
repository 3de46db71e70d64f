// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/fleet"
	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/result"
)

// databases is the server that everything is measured on. It is for one goroutine. The caller closes it.
type databases struct {
	admin     string           // URL of a database that is there already
	server    *postgres.Server // nil: a server of somebody else
	cockroach bool
	templates map[string]string // names by what they are
	made      map[string]bool   // databases that are still there
}

// serverSettings are those of a server of our own. Commits are durable; the rest keeps the server from doing in the middle of a
// round what has nothing to do with it.
var serverSettings = map[string]string{
	"shared_buffers":     "512MB",
	"max_wal_size":       "8GB",
	"checkpoint_timeout": "30min",
	"autovacuum_naptime": "1min",
}

// openDatabases starts a PostgreSQL server with fsync on, or uses the one of a URL, whose user must be allowed to make databases.
func openDatabases(ctx context.Context, databaseURL string) (*databases, error) {
	d := &databases{admin: databaseURL, templates: map[string]string{}, made: map[string]bool{}}
	if databaseURL == "" {
		server, err := postgres.Start(ctx, postgres.Options{Durable: true, MaxConnections: 600, Settings: serverSettings})
		if err != nil {
			return nil, err
		}
		d.server, d.admin = server, server.URL("postgres")
	}
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect to the database server: %w", err), d.close())
	}
	d.cockroach = conn.PgConn().ParameterStatus("crdb_version") != ""
	return d, conn.Close(ctx)
}

func (d *databases) close() error {
	if d.server != nil {
		return d.server.Close()
	}
	var failed error
	for name := range d.made {
		failed = errors.Join(failed, d.drop(context.Background(), name))
	}
	return failed
}

// url is that of a database of the server.
func (d *databases) url(name string) string {
	u, err := url.Parse(d.admin)
	if err != nil {
		return d.admin // it was connected to
	}
	u.Path = "/" + name
	return u.String()
}

func (d *databases) exec(ctx context.Context, sql string) error {
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return fmt.Errorf("connect to the database server: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := conn.Exec(ctx, sql); err != nil {
		return fmt.Errorf("%s: %w", sql, err)
	}
	return nil
}

// fresh makes a database as fill makes it, and returns its URL. Under a key, which stands for how it is filled, it is made once and copied where
// the server can copy. The caller drops it.
func (d *databases) fresh(ctx context.Context, key string, fill func(ctx context.Context, databaseURL string) error) (databaseURL string, drop func(), err error) {
	name := "bmdb_bench_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	d.made[name] = true
	if d.cockroach || key == "" {
		if err := d.exec(ctx, "CREATE DATABASE "+name); err != nil {
			return "", nil, err
		}
		if err := fill(ctx, d.url(name)); err != nil {
			return "", nil, err
		}
	} else if err := d.copyOf(ctx, key, name, fill); err != nil {
		return "", nil, err
	}
	return d.url(name), func() { _ = d.drop(context.WithoutCancel(ctx), name) }, nil
}

func (d *databases) copyOf(ctx context.Context, key, name string, fill func(ctx context.Context, databaseURL string) error) error {
	template, ok := d.templates[key]
	if !ok {
		template = "bmdb_bench_template_" + strings.ReplaceAll(uuid.NewString(), "-", "")
		d.made[template] = true
		if err := d.exec(ctx, "CREATE DATABASE "+template); err != nil {
			return err
		}
		if err := fill(ctx, d.url(template)); err != nil {
			return err
		}
		d.templates[key] = template
	}
	if err := d.exec(ctx, "CREATE DATABASE "+name+" TEMPLATE "+template); err != nil {
		return err
	}
	// What a round begins with is written out before it begins.
	return d.exec(ctx, "CHECKPOINT")
}

func (d *databases) drop(ctx context.Context, name string) error {
	force := " WITH (FORCE)"
	if d.cockroach {
		force = " CASCADE"
	}
	delete(d.made, name)
	return d.exec(ctx, "DROP DATABASE IF EXISTS "+name+force)
}

// facts are what the report says of the server.
func (d *databases) facts(ctx context.Context) ([]result.Fact, error) {
	conn, err := pgx.Connect(ctx, d.admin)
	if err != nil {
		return nil, fmt.Errorf("connect to the database server: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var version string
	if err := conn.QueryRow(ctx, "SELECT version()").Scan(&version); err != nil {
		return nil, fmt.Errorf("read the database's version: %w", err)
	}
	facts := []result.Fact{{Name: "database", Value: version}}
	if d.cockroach {
		return facts, nil
	}
	for _, name := range []string{"fsync", "synchronous_commit", "full_page_writes", "wal_sync_method", "shared_buffers", "max_wal_size", "jit"} {
		var value string
		if err := conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&value); err != nil {
			return nil, fmt.Errorf("read the database's setting %s: %w", name, err)
		}
		facts = append(facts, result.Fact{Name: "database: " + name, Value: value})
	}
	return facts, nil
}

// migrated brings a database's schema up to date.
func migrated(ctx context.Context, databaseURL string) error {
	return bmdb.Migrate(ctx, databaseURL, slog.New(slog.DiscardHandler))
}

// filled is how a database with fleets is made.
func filled(fleets ...fleet.Fleet) func(ctx context.Context, databaseURL string) error {
	return func(ctx context.Context, databaseURL string) error {
		if err := migrated(ctx, databaseURL); err != nil {
			return err
		}
		for _, f := range fleets {
			if err := fleet.Fill(ctx, databaseURL, f); err != nil {
				return err
			}
		}
		return nil
	}
}
