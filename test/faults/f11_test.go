// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestF11 puts an older copy of the database, and then another database, in its place under operators that run. They notice it, say so on every
// object, and touch no machine before a person has acknowledged it.
func TestF11(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F11", rigOptions{pods: 2})
	r.start()
	r.fleet(0, 0)
	r.CreateFleet(provider, "m-000", "m-001")
	r.Create(r.Claim("before", "m-000"))
	r.AwaitClaim("before", v1alpha1.ReasonComplete)
	older := r.beside("_older", " TEMPLATE ")
	r.Create(r.Claim("after", "m-001"))
	r.AwaitClaim("after", v1alpha1.ReasonComplete)
	r.awaitShown("m-001")
	touches := len(r.witness.Touches())

	r.replaceWith(older)
	r.struck("an older copy in place of the database")
	r.AwaitClaim("after", v1alpha1.ReasonDatabaseRewound)
	r.unacknowledged(touches)
	r.Command("acknowledge-database", "--yes", "--actor", "somebody")
	r.AwaitClaim("after", v1alpha1.ReasonComplete) // m-001 was done again, as the person has decided
	r.AwaitClaim("before", v1alpha1.ReasonComplete)
	if err := r.Broken(t.Context(), testbed.Rules()); err != nil {
		t.Error(err)
	}
	r.struck("acknowledged by a person")

	touches = len(r.witness.Touches())
	r.replaceWith(databaseOf(t, bmdbtest.NewURL(t)))
	r.struck("another database in place of the database")
	// Nothing that they know is true there: they end, and are started again as a Deployment does.
	for _, p := range r.pods {
		select {
		case <-p.process.Load().Done():
		case <-time.After(testbed.Patience):
			t.Fatalf("%s goes on with another database", p.Name)
		}
		if !strings.Contains(p.process.Load().Err().Error(), "another database") {
			t.Errorf("%s ended: %v", p.Name, p.process.Load().Err())
		}
		p.launch()
	}
	r.AwaitClaim("after", v1alpha1.ReasonDatabaseChanged)
	r.unacknowledged(touches)
	for _, p := range r.pods {
		if err := p.process.Load().Err(); err != nil {
			t.Errorf("%s has ended: %v", p.Name, err)
		}
	}
	r.require("an older copy in place of the database", "another database in place of the database", "acknowledged by a person")
}

// awaitShown waits until a machine's object shows what the database knows, so that it can witness.
func (r *rig) awaitShown(name string) {
	r.T.Helper()
	r.Eventually(testbed.Patience, "machine "+name+" shows its agent", func(ctx context.Context) error {
		m, err := r.ReadMachine(ctx, name)
		if err == nil && m.Status.Tags.AgentStarted.StartTime == nil {
			err = errors.New("it does not")
		}
		return err
	})
}

// unacknowledged sees that nobody touches a machine for some leases.
func (r *rig) unacknowledged(touches int) {
	r.T.Helper()
	r.Always(2*defaultLease, "before anybody has acknowledged it", func(context.Context) error {
		if n := len(r.witness.Touches()); n != touches {
			return fmt.Errorf("machines were touched %d times", n-touches)
		}
		return nil
	})
}

func databaseOf(t *testing.T, text string) string {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(u.Path, "/")
}

// admin runs statements on the server at moments at which nobody is connected to the rig's database.
func (r *rig) admin(statements ...string) {
	r.T.Helper()
	u, err := url.Parse(r.Database)
	if err != nil {
		r.T.Fatal(err)
	}
	u.Path = "/postgres"
	ctx := context.WithoutCancel(r.T.Context())
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		r.T.Fatal(err)
	}
	defer conn.Close(ctx)
	const tries = 200 // somebody may connect in between
	for _, statement := range statements {
		var err error
		for range tries {
			for _, p := range r.pods {
				p.proxy.CutAll()
			}
			if _, err := conn.Exec(ctx, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", databaseOf(r.T, r.Database)); err != nil {
				r.T.Fatal(err)
			}
			if _, err = conn.Exec(ctx, statement); err == nil {
				break
			}
		}
		if err != nil {
			r.T.Fatalf("%s: %v", statement, err)
		}
	}
}

// beside makes a database beside the rig's, and returns its name.
func (r *rig) beside(suffix, how string) string {
	r.T.Helper()
	name := databaseOf(r.T, r.Database)
	r.admin("CREATE DATABASE " + name + suffix + how + name)
	r.T.Cleanup(func() { r.dropLater(name + "_gone") })
	return name + suffix
}

func (r *rig) dropLater(name string) {
	for _, p := range r.pods {
		p.kill(p.process.Load())
	}
	r.admin("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)")
}

// replaceWith puts another database in the place of the rig's.
func (r *rig) replaceWith(other string) {
	r.T.Helper()
	name := databaseOf(r.T, r.Database)
	r.admin("DROP DATABASE IF EXISTS "+name+"_gone WITH (FORCE)", "ALTER DATABASE "+name+" RENAME TO "+name+"_gone", "ALTER DATABASE "+other+" RENAME TO "+name)
	r.DB.Reset()
}
