// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

// TestReadiness takes the database away while machines are worked on. Operators say that they are not ready, do not end, and write
// nothing to statuses; when it is back they go on by themselves, and nothing was done twice.
func TestReadiness(t *testing.T) {
	t.Parallel()
	server, err := postgres.Start(t.Context(), postgres.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	database, err := server.CreateDatabase(t.Context(), "bmdb")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, labOptions{database: database})
	if out, err := l.run(database, "migrate"); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	const lease = 3 * time.Second
	pods := []*operator{l.start("operator-a", "--lease", lease.String()), l.start("operator-b", "--lease", lease.String())}
	l.create(l.simulated("sim", latency(500*time.Millisecond)))
	machines := names("sim", 40)
	l.createFleet("sim", machines...)
	claim := l.claim("work", machines...)
	claim.Spec.Parallelism = 2
	l.create(claim)
	l.eventually(patience, "the claim is in the middle", func(ctx context.Context) error {
		n, err := l.number(ctx, countOf, "work", "Finished")
		if err == nil && n < 5 {
			err = fmt.Errorf("%d are done", n)
		}
		return err
	})

	if err := server.Stop(t.Context(), postgres.Immediate); err != nil {
		t.Fatal(err)
	}
	for _, o := range pods {
		l.eventually(patience, o.name+" is not ready without a database", func(ctx context.Context) error {
			if o.ready(ctx) == nil {
				return errors.New("it is")
			}
			return nil
		})
	}
	versions := l.versions()
	l.always(3*lease, "without a database", func(ctx context.Context) error {
		for _, o := range pods {
			if !o.running() {
				return fmt.Errorf("%s has ended: %w", o.name, o.process.Err())
			}
			if o.ready(ctx) == nil {
				return fmt.Errorf("%s says that it is ready", o.name)
			}
		}
		if now := l.versions(); now != versions {
			return fmt.Errorf("objects were written: they are at %s, and were at %s", now, versions)
		}
		return nil
	})

	if err := server.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.db.Reset()
	for _, o := range pods {
		l.eventually(patience, o.name+" is ready again", o.ready)
	}
	l.awaitClaim("work", v1alpha1.ReasonComplete)
	if err := l.broken(t.Context(), append(rules(), rulesAtRest()...)); err != nil {
		t.Error(err)
	}
	l.verifyStatuses()
}

// versions are the resource versions of all objects of the namespace.
func (l *lab) versions() string {
	l.t.Helper()
	text := ""
	for _, list := range []client.ObjectList{&v1alpha1.MachineList{}, &v1alpha1.WorkClaimList{}, &v1alpha1.ProviderConfigList{}} {
		if err := l.client.List(l.t.Context(), list, client.InNamespace(l.namespace)); err != nil {
			l.t.Fatal(err)
		}
		switch list := list.(type) {
		case *v1alpha1.MachineList:
			for _, o := range list.Items {
				text += " " + o.Name + ":" + o.ResourceVersion
			}
		case *v1alpha1.WorkClaimList:
			for _, o := range list.Items {
				text += " " + o.Name + ":" + o.ResourceVersion
			}
		case *v1alpha1.ProviderConfigList:
			for _, o := range list.Items {
				text += " " + o.Name + ":" + o.ResourceVersion
			}
		}
	}
	return text
}
