// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"fmt"
	"log"
	"net/url"
	"strings"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

// exampleDatabase makes a database with machines. Tests use bmdbtest.New; an example has no testing.TB.
func exampleDatabase(ctx context.Context, machines int) (*bmdb.Connection, func()) {
	admin, err := postgres.Shared(ctx)
	if err != nil {
		log.Fatal(err)
	}
	server, err := pgx.Connect(ctx, admin)
	if err != nil {
		log.Fatal(err)
	}
	name := "bmdb_example_" + strings.ReplaceAll(uuid.NewString(), "-", "")
	if _, err := server.Exec(ctx, "CREATE DATABASE "+name); err != nil {
		log.Fatal(err)
	}
	u, err := url.Parse(admin)
	if err != nil {
		log.Fatal(err)
	}
	u.Path = "/" + name
	conn, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: u.String(), ComponentName: "example"}}).Open(true)
	if err != nil {
		log.Fatal(err)
	}
	session, err := conn.StartSession(ctx, bmdb.WithoutMaintenance())
	if err != nil {
		log.Fatal(err)
	}
	err = session.Transact(ctx, func(q *model.Queries) error {
		for i := range machines {
			m, err := q.NewMachine(ctx)
			if err != nil {
				return err
			}
			err = q.MachineAddProvided(ctx, model.MachineAddProvidedParams{MachineID: m.MachineID, Provider: "lab", ProviderID: fmt.Sprint(i)})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := session.Close(ctx); err != nil {
		log.Fatal(err)
	}
	return conn, func() {
		conn.Close()
		if _, err := server.Exec(ctx, "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			log.Fatal(err)
		}
		if err := server.Close(ctx); err != nil {
			log.Fatal(err)
		}
	}
}
