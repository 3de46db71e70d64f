// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestControlPlaneEmptied empties the control plane under two operators that work: what is not there any more ends nothing. Watches of an API server
// whose history begins anew tell nothing, so both notice by themselves and end in good order, and are started again as the kubelet does. With the
// manifests applied then, machines have the IDs that they had, claims their outcomes, nothing was done twice, and what went on is done.
func TestControlPlaneEmptied(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{Plane: newPlane(t)})
	// A ServiceAccount of the same name is another one afterwards; these credentials are not.
	kubeconfig := filepath.Join(l.Dir, "kubeconfig-admin")
	if err := devenv.WriteKubeconfig(kubeconfig, l.Plane.RESTConfig()); err != nil {
		t.Fatal(err)
	}
	pods := []*testbed.Operator{l.Operator("operator-a", "--cluster-id", "here"), l.Operator("operator-b", "--cluster-id", "here")}
	for _, o := range pods {
		o.Env = append(o.Env, "KUBECONFIG="+kubeconfig)
		o.Start()
	}
	manifests := func(slow time.Duration) []client.Object {
		objects := []client.Object{l.Simulated("fast", v1alpha1.SimulatedProvider{}), l.Simulated("slow", testbed.Latency(slow)), l.Claim("done", "fast-000", "fast-001")}
		for _, name := range testbed.Names("fast", 3) {
			objects = append(objects, l.Machine(name, "fast"))
		}
		return append(objects, l.Machine("slow-000", "slow"))
	}
	l.Create(append(manifests(time.Hour), l.Claim("going-on", "slow-000"))...)
	l.AwaitClaim("done", v1alpha1.ReasonComplete)
	l.awaitAgents("fast-000", "fast-001")
	l.AwaitCount("work goes on", 1, testbed.CountOpen, "going-on")
	l.AwaitClaim("going-on", v1alpha1.ReasonWorking)
	l.AwaitRecorded("slow", 1)
	outcomes, uids := l.outcomes(), l.uids()
	slow, err := l.ReadMachine(t.Context(), "slow-000")
	if err != nil {
		t.Fatal(err)
	}
	for _, unfinished := range []string{"going-on", "slow-000"} {
		delete(outcomes, unfinished)
	}

	if err := l.Plane.Empty(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := l.Client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: l.Namespace}}); err != nil {
		t.Fatal(err)
	}
	unharmed := func(ctx context.Context) error {
		return errors.Join(
			l.none(ctx, "SELECT count(*) FROM work_history WHERE phase = 1 AND event NOT IN ('Finished', 'Canceled')"),
			l.none(ctx, "SELECT count(*) FROM claims WHERE state NOT IN ('Running', 'Complete')"),
			l.none(ctx, "SELECT 4 - count(*) FROM machine_views WHERE attached"),
			l.none(ctx, "SELECT 2 - count(*) FROM claim_views"),
			l.none(ctx, "SELECT 2 - count(*) FROM provider_views"))
	}
	l.Eventually(testbed.Patience, "both operators end", func(ctx context.Context) error {
		if err := unharmed(ctx); err != nil && ctx.Err() == nil {
			t.Fatalf("while there is nothing: %v", err)
		}
		for _, o := range pods {
			if o.Running() {
				return fmt.Errorf("%s goes on", o.Name)
			}
		}
		return nil
	})
	for _, o := range pods {
		l.endedWithItsAPIServer(o)
	}
	if n := l.Count("SELECT count(*) FROM sessions WHERE session_end_reason = 'closed'"); n != len(pods) {
		t.Errorf("%d sessions were closed, want those of both operators", n)
	}
	l.AwaitCount("the work is handed over", 1, testbed.CountOf, "going-on", "Canceled")
	history := l.everythingDone()
	for _, o := range pods {
		o.Start()
	}
	const looks = 10 * time.Second // each pod lists anew within seconds, and finds nothing
	l.Always(looks, "operators have begun with nothing", unharmed)
	l.Create(manifests(time.Second)...)
	l.verifyRestored(outcomes, history, uids)
	l.Create(l.Claim("going-on", "slow-000"))
	l.AwaitClaim("going-on", v1alpha1.ReasonComplete)
	if again, err := l.ReadMachine(t.Context(), "slow-000"); err != nil || again.Status.MachineID != slow.Status.MachineID {
		t.Errorf("the machine that was worked on was %s and is %s: %v", slow.Status.MachineID, again.Status.MachineID, err)
	}
	for name, events := range l.History("going-on") {
		if got := testbed.EventNames(events); got != "Started Canceled Started Finished" {
			t.Errorf("machine %s: %s", name, got)
		}
	}
	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
}

// endedWithItsAPIServer sees that an operator has ended by itself, and says why.
func (l *lab) endedWithItsAPIServer(o *testbed.Operator) {
	l.T.Helper()
	if code := o.Process.Exit().ExitCode(); code != 1 {
		l.T.Errorf("%s ended with %d: %v", o.Name, code, o.Process.Err())
	}
	ends, _ := o.Logged(0, func(e testbed.LogEntry) bool { return e.Text("msg") == "the operator ends" })
	if len(ends) != 1 || ends[0].Text("level") != "ERROR" || !strings.Contains(ends[0].Text("err"), controllers.ErrAnotherAPIServer.Error()) {
		l.T.Errorf("%s says of its end: %v", o.Name, ends)
	}
}

// TestKindsAreMissing: an operator that is started before its CustomResourceDefinitions stays, is not ready, says what is missing, and begins when they
// come. When they are deleted under it, with all objects, and it is started again without them, nothing is ended.
func TestKindsAreMissing(t *testing.T) {
	t.Parallel()
	plane, err := devenv.Start(t.Context(), devenv.Options{CRDDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	l := newLab(t, testbed.Options{Plane: plane})
	o := l.Operator("operator-a", "--cluster-id", "here")
	o.Launch()
	waits := func(from int64) {
		t.Helper()
		l.Eventually(testbed.Patience, "the operator says what is missing", func(context.Context) error {
			said, _ := o.Logged(from, func(e testbed.LogEntry) bool {
				return strings.Contains(e.Text("missing"), "workclaims.bmdb.dev") && strings.Contains(e.Text("msg"), "config/crd")
			})
			if len(said) == 0 {
				return errors.New("it does not")
			}
			return nil
		})
		l.Always(3*time.Second, "it waits", func(ctx context.Context) error {
			switch {
			case !o.Running():
				return fmt.Errorf("it has ended: %w", o.Process.Err())
			case o.Ready(ctx) == nil:
				return errors.New("it is ready")
			}
			return nil
		})
	}
	waits(0)
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	install := func() {
		t.Helper()
		if err := plane.InstallCRDs(t.Context(), filepath.Join(root, "config", "crd", "bases")); err != nil {
			t.Fatal(err)
		}
		l.Eventually(testbed.Patience, "the operator is ready", o.Ready)
	}
	install()
	l.Create(l.Simulated("fast", v1alpha1.SimulatedProvider{}), l.Machine("m-000", "fast"), l.Claim("done", "m-000"))
	l.AwaitClaim("done", v1alpha1.ReasonComplete)
	l.awaitAgents("m-000")
	outcomes, history := l.outcomes(), l.everythingDone()
	o.Terminate()

	from := o.LogEnd()
	for _, kind := range []string{"machines", "providerconfigs", "workclaims"} {
		definition := &unstructured.Unstructured{}
		definition.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
		definition.SetName(kind + ".bmdb.dev")
		if err := l.Client.Delete(t.Context(), definition); err != nil {
			t.Fatal(err)
		}
		l.Eventually(testbed.Patience, "the definition of "+kind+" is gone", func(ctx context.Context) error {
			err := l.Client.Get(ctx, client.ObjectKeyFromObject(definition), definition)
			if err == nil {
				return errors.New("it is not")
			}
			return client.IgnoreNotFound(err)
		})
	}
	o.Launch()
	waits(from)
	if n := l.Count("SELECT (SELECT count(*) FROM claim_views) + (SELECT count(*) FROM machine_views WHERE attached)"); n != 2 || l.everythingDone() != history {
		t.Errorf("%d of two views are left, and this was done:\n%s\nbefore:\n%s", n, l.everythingDone(), history)
	}
	install()
	l.Create(l.Simulated("fast", v1alpha1.SimulatedProvider{}), l.Machine("m-000", "fast"), l.Claim("done", "m-000"))
	l.verifyRestored(outcomes, history, nil)
}
