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
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
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
	l := newLab(t, testbed.Options{Database: database})
	if out, err := l.Run(database, "migrate"); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	const lease = 3 * time.Second
	pods := []*testbed.Operator{l.Start("operator-a", "--lease", lease.String()), l.Start("operator-b", "--lease", lease.String())}
	l.Create(l.Simulated("sim", testbed.Latency(500*time.Millisecond)))
	machines := testbed.Names("sim", 40)
	l.CreateFleet("sim", machines...)
	claim := l.Claim("work", machines...)
	claim.Spec.Parallelism = 2
	l.Create(claim)
	l.Eventually(testbed.Patience, "the claim is in the middle", func(ctx context.Context) error {
		n, err := l.Number(ctx, testbed.CountOf, "work", "Finished")
		if err == nil && n < 5 {
			err = fmt.Errorf("%d are done", n)
		}
		return err
	})

	if err := server.Stop(t.Context(), postgres.Immediate); err != nil {
		t.Fatal(err)
	}
	for _, o := range pods {
		l.Eventually(testbed.Patience, o.Name+" is not ready without a database", func(ctx context.Context) error {
			if o.Ready(ctx) == nil {
				return errors.New("it is")
			}
			return nil
		})
	}
	versions := l.versions()
	l.Always(3*lease, "without a database", func(ctx context.Context) error {
		for _, o := range pods {
			if !o.Running() {
				return fmt.Errorf("%s has ended: %w", o.Name, o.Process.Err())
			}
			if o.Ready(ctx) == nil {
				return fmt.Errorf("%s says that it is ready", o.Name)
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
	l.DB.Reset()
	for _, o := range pods {
		l.Eventually(testbed.Patience, o.Name+" is ready again", o.Ready)
	}
	l.AwaitClaim("work", v1alpha1.ReasonComplete)
	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
	l.VerifyStatuses()
}

// versions are the resource versions of all objects of the namespace.
func (l *lab) versions() string {
	l.T.Helper()
	text := ""
	for _, list := range []client.ObjectList{&v1alpha1.MachineList{}, &v1alpha1.WorkClaimList{}, &v1alpha1.ProviderConfigList{}} {
		if err := l.Client.List(l.T.Context(), list, client.InNamespace(l.Namespace)); err != nil {
			l.T.Fatal(err)
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
