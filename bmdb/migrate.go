// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"
	"github.com/pressly/goose/v3/lock"

	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
)

const versionTable = "bmdb_schema_version"

// Status is how far a database's schema has been migrated.
type Status struct {
	// Version is the number of the last migration that was applied; 0 for an empty database.
	Version int64
	// Oldest is the last migration that a version of the library must know at least to work with the schema although it is newer; 0: none
	// may, the schema says nothing.
	Oldest int64
}

// compatible tells whether a version of the library that knows the schemas from minimum to latest works with this one. A schema that is newer is
// one that it does not know, unless the schema itself says that it may work with it: pods of two versions work side by side while the one
// replaces the other.
func (s Status) compatible(minimum, latest int64) error {
	if err := stands(s.Oldest, latest); err != nil {
		return err
	}
	switch {
	case s.Version < minimum:
		return fmt.Errorf("schema version is %d, this version works with %d to %d: %w", s.Version, minimum, latest, ErrSchemaTooOld)
	case s.Version > latest && s.Oldest == 0:
		return fmt.Errorf("schema version is %d, this version works with %d to %d: %w", s.Version, minimum, latest, ErrSchemaTooNew)
	}
	return nil
}

// stands tells whether a version of the library that knows the schemas up to latest may work with a schema that says oldest. It is said before
// the migrations that make it necessary are begun, so that the schema's own version proves nothing against it.
func stands(oldest, latest int64) error {
	if oldest > latest {
		return fmt.Errorf("the schema is migrated for programs that know version %d at least, and this one knows %d: %w", oldest, latest, ErrSchemaTooNew)
	}
	return nil
}

// Migrate brings the schema up to date and gives the database its identity and the built-in processes. It may be called by any number
// of programs at once: one of them does it, under a lease in the database, and the others wait. It is idempotent, and goes on where an
// earlier call was interrupted. A schema that a newer version has migrated is left as it is, and what that version says of processes too:
// ErrSchemaTooNew unless this version may work with it.
func Migrate(ctx context.Context, databaseURL string, log *slog.Logger) error {
	if err := migrate(ctx, databaseURL, log); err != nil {
		return fmt.Errorf("migrate: %w", err)
	}
	return nil
}

func migrate(ctx context.Context, databaseURL string, log *slog.Logger) error {
	db, err := openSQL(databaseURL)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	status, err := schemaStatus(ctx, db)
	if err != nil {
		return err
	}
	if status.Version > migrations.Latest || status.Oldest > migrations.Latest {
		log.InfoContext(ctx, "the schema is newer; it stays as it is", "version", status.Version, "oldest", status.Oldest)
		return status.compatible(migrations.Minimum, migrations.Latest)
	}
	if status.Version >= migrations.Compatibility {
		// Before the migrations: from now on no code starts that could not stand them.
		if _, err := db.ExecContext(ctx, sqlRaiseOldest, migrations.Oldest); err != nil {
			return fmt.Errorf("say which code works with the schema: %w", err)
		}
	}
	provider, err := newProvider(db, true)
	if err != nil {
		return err
	}
	results, err := provider.Up(ctx)
	if err != nil {
		return err
	}
	if len(results) > 0 {
		log.InfoContext(ctx, "migrated the schema", "migrations", len(results), "version", results[len(results)-1].Source.Version)
	}
	if _, err := db.ExecContext(ctx, sqlRaiseOldest, migrations.Oldest); err != nil {
		return fmt.Errorf("say which code works with the schema: %w", err)
	}
	return seed(ctx, db)
}

// SchemaStatus tells how far the schema has been migrated, without changing anything.
func SchemaStatus(ctx context.Context, databaseURL string) (Status, error) {
	db, err := openSQL(databaseURL)
	if err != nil {
		return Status{}, fmt.Errorf("read schema version: %w", err)
	}
	defer func() { _ = db.Close() }()
	status, err := schemaStatus(ctx, db)
	if err != nil {
		return Status{}, fmt.Errorf("read schema version: %w", err)
	}
	return status, nil
}

func schemaStatus(ctx context.Context, db *sql.DB) (Status, error) {
	store, err := database.NewStore(database.DialectPostgres, versionTable)
	if err != nil {
		return Status{}, err
	}
	var exists bool
	if err := db.QueryRowContext(ctx, sqlSchemaVersionExists).Scan(&exists); err != nil || !exists {
		return Status{}, err
	}
	var status Status
	status.Version, err = store.GetLatestVersion(ctx, db)
	if errors.Is(err, database.ErrVersionNotFound) {
		return Status{}, nil
	}
	if err == nil && status.Version >= migrations.Compatibility {
		err = db.QueryRowContext(ctx, sqlSchemaOldest).Scan(&status.Oldest)
	}
	return status, err
}

func openSQL(databaseURL string) (*sql.DB, error) {
	config, err := pgx.ParseConfig(databaseURL)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", redactURL(err))
	}
	return stdlib.OpenDB(*config), nil
}

func newProvider(db *sql.DB, locked bool) (*goose.Provider, error) {
	store, err := database.NewStore(database.DialectPostgres, versionTable)
	if err != nil {
		return nil, err
	}
	options := []goose.ProviderOption{goose.WithStore(store), goose.WithDisableGlobalRegistry(true)}
	if locked {
		// A lease in a table, not an advisory lock, which CockroachDB does not have. It does not fence: that is why each
		// migration is idempotent.
		locker, err := lock.NewPostgresTableLocker(lock.WithTableName("bmdb_schema_lock"))
		if err != nil {
			return nil, err
		}
		options = append(options, goose.WithLocker(locker))
	}
	return goose.NewProvider(goose.DialectCustom, db, migrations.FS, options...)
}

// seed writes the rows that every database has. It is run after each migration, so that a new version's processes appear with it.
func seed(ctx context.Context, db *sql.DB) error {
	if _, err := db.ExecContext(ctx, sqlSeedIdentity, uuid.New()); err != nil {
		return fmt.Errorf("give the database an identity: %w", err)
	}
	for _, p := range builtinProcesses() {
		if err := seedProcess(ctx, db, p); err != nil {
			return fmt.Errorf("register process %s: %w", p.Name, err)
		}
	}
	return nil
}

// seedProcess writes a built-in process, under the mutex of the names of processes: a name means one thing to a machine.
func seedProcess(ctx context.Context, db *sql.DB, p ProcessDefinition) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if _, err := tx.ExecContext(ctx, sqlLockProcesses); err != nil {
		return err
	}
	// While this waited, a newer version may have migrated: what it says of processes counts.
	var further bool
	if err := tx.QueryRowContext(ctx, sqlMigratedFurther, migrations.Latest).Scan(&further); err != nil || further {
		return err
	}
	var pool string
	switch err := tx.QueryRowContext(ctx, sqlOtherDefinition, p.Pool, p.Name).Scan(&pool); {
	case err == nil:
		return fmt.Errorf("pool %s has a process of that name, which is built in from this version on: register yours under another name and delete its row", pool)
	case !errors.Is(err, sql.ErrNoRows):
		return err
	}
	if _, err := tx.ExecContext(ctx, sqlSeedProcess, p.Name, p.Slot, p.Requires, p.Forbids, p.Sets, p.Clears, p.Destructive, p.Convergent, p.indexed); err != nil {
		return err
	}
	return tx.Commit()
}
