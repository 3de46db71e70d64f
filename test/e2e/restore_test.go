// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestRestore takes all objects away and applies their manifests again, as from Git: into the same API server, under a running operator
// and under one that looked away, and into an empty one, as the same cluster and as another. The database is the same: nothing is done
// again, and the statuses come back.
func TestRestore(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	o := l.Start("operator-a", "--lease", "3s")
	manifests := l.manifests()
	objects := manifests()
	claims := slices.IndexFunc(objects, func(o client.Object) bool { _, ok := o.(*v1alpha1.WorkClaim); return ok })
	l.Create(objects[:claims]...)
	l.AwaitRecorded("good", 5) // a claim drains what is recorded by then
	l.Create(objects[claims:]...)
	want := map[string]v1alpha1.Reason{
		"done": v1alpha1.ReasonComplete, "drained": v1alpha1.ReasonComplete, "keyed": v1alpha1.ReasonComplete, "hopeless": v1alpha1.ReasonCompletionsUnreachable,
	}
	for claim, reason := range want {
		l.AwaitClaim(claim, reason)
	}
	l.awaitAgents("good-000", "good-001", "good-002", "good-003")
	before, history := l.outcomes(), l.everythingDone()
	if len(before) != len(want)+6 {
		t.Fatalf("there are %d outcomes: %v", len(before), before)
	}

	t.Run("SameAPIServer", func(t *testing.T) {
		l := l.in(t)
		uids := l.uids()
		l.Remove(manifests()...)
		l.AwaitGone(manifests()...)
		l.AwaitCount("no object of a claim is known", 0, "SELECT count(*) FROM claim_views")
		l.AwaitCount("no object of a machine is known", 0, "SELECT count(*) FROM machine_views WHERE attached")
		l.Create(manifests()...)
		l.verifyRestored(before, history, uids)
	})
	t.Run("WhileOperatorWasAway", func(t *testing.T) {
		l := l.in(t)
		uids := l.uids()
		o.Terminate()
		l.Remove(manifests()...)
		l.AwaitGone(manifests()...)
		l.Create(manifests()...)
		o.Start()
		l.verifyRestored(before, history, uids)
	})
	cluster := l.Count("SELECT count(*) FROM clusters")
	var id string
	if err := l.DB.QueryRow(t.Context(), "SELECT cluster FROM clusters").Scan(&id); err != nil || cluster != 1 {
		t.Fatalf("there are %d clusters, want one: %v", cluster, err)
	}
	// The old cluster is gone for good: nobody says goodbye to the views that it had.
	if !o.Kill() {
		t.Error("the operator was not killed")
	}
	plane, err := devenv.Start(t.Context(), devenv.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	empty := newLab(t, testbed.Options{Plane: plane, Database: l.Database, Namespace: l.Namespace})
	t.Run("EmptyAPIServerOfTheSameCluster", func(t *testing.T) {
		empty := empty.in(t)
		uids := l.uids()
		same := empty.Start("operator-same", "--lease", "3s", "--cluster-id", id)
		empty.Create(manifests()...)
		empty.verifyRestored(before, history, uids)
		for name, o := range empty.conditions(v1alpha1.ConditionManaged) {
			if o.Status != metav1.ConditionTrue {
				t.Errorf("%s: Managed=%s, %s: %s", name, o.Status, o.Reason, o.Message)
			}
		}
		same.Terminate()
	})
	t.Run("EmptyAPIServerOfAnotherCluster", func(t *testing.T) {
		empty := empty.in(t)
		uids := empty.uids()
		empty.Remove(manifests()...)
		empty.AwaitGone(manifests()...)
		empty.Create(manifests()...)
		empty.Start("operator-other", "--lease", "3s")
		empty.verifyRestored(before, history, uids)
		for name, o := range empty.conditions(v1alpha1.ConditionManaged) {
			if o.Reason != string(v1alpha1.ReasonManagedElsewhere) {
				t.Errorf("%s: Managed=%s, %s: %s", name, o.Status, o.Reason, o.Message)
			}
		}
	})
}

// manifests returns a maker of all objects of the test, as they would be in Git: without UIDs and statuses.
func (l *lab) manifests() func() []client.Object {
	return func() []client.Object {
		bad := v1alpha1.SimulatedProvider{FailurePercent: ptr.To[int32](100)}
		objects := []client.Object{l.Simulated("good", v1alpha1.SimulatedProvider{}), l.Simulated("bad", bad), l.Machine("bad-000", "bad")}
		for i, name := range testbed.Names("good", 5) {
			m := l.Machine(name, "good")
			m.Labels = map[string]string{"half": fmt.Sprint(i / 2)}
			objects = append(objects, m)
		}
		drained := l.Claim("drained")
		drained.Spec.Mode, drained.Spec.Machines.Names = v1alpha1.WorkModeDrain, nil
		drained.Spec.Machines.Selector = &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"half": "1"}}
		keyed := l.Claim("keyed", "good-001")
		keyed.Spec.Key = "reinstall-2026-11"
		hopeless := l.Claim("hopeless", "bad-000")
		hopeless.Spec.MaxAttempts = 2
		return append(objects, l.Claim("done", "good-000"), drained, keyed, hopeless)
	}
}

func (l *lab) awaitAgents(machines ...string) {
	l.T.Helper()
	for _, name := range machines {
		l.Eventually(testbed.Patience, "machine "+name+" shows its agent", func(ctx context.Context) error {
			m, err := l.ReadMachine(ctx, name)
			if err == nil && m.Status.Tags.AgentStarted.StartTime == nil {
				err = errors.New("it does not")
			}
			return err
		})
	}
}

// outcomes are what the statuses of all objects say that must never be lost, by the object's name.
func (l *lab) outcomes() map[string]string {
	l.T.Helper()
	all, err := l.readOutcomes(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	return all
}

func (l *lab) readOutcomes(ctx context.Context) (map[string]string, error) {
	var claims v1alpha1.WorkClaimList
	var machines v1alpha1.MachineList
	if err := errors.Join(l.Client.List(ctx, &claims, client.InNamespace(l.Namespace)), l.Client.List(ctx, &machines, client.InNamespace(l.Namespace))); err != nil {
		return nil, err
	}
	all := map[string]string{}
	for i := range claims.Items {
		s := &claims.Items[i].Status
		ready := testbed.Condition(s.Conditions, v1alpha1.ConditionReady)
		failures := make([]string, 0, len(s.Failures))
		for _, f := range s.Failures {
			failures = append(failures, fmt.Sprint(f.Machine, f.Attempts, f.Cause))
		}
		all[claims.Items[i].Name] = fmt.Sprint(s.Key, " ", s.DatabaseID, " ", s.Progress, " ", ptr.Deref(s.Succeeded, -1), ptr.Deref(s.Active, -1), ptr.Deref(s.Failed, -1), failures,
			s.SkippedMachines, s.StartTime, s.CompletionTime, ready.Status, ready.Reason,
			testbed.IsTrue(s.Conditions, v1alpha1.ConditionFinished), testbed.IsTrue(s.Conditions, v1alpha1.ConditionComplete), testbed.IsTrue(s.Conditions, v1alpha1.ConditionFailed))
	}
	for i := range machines.Items {
		s := &machines.Items[i].Status
		ready := testbed.Condition(s.Conditions, v1alpha1.ConditionReady)
		all[machines.Items[i].Name] = fmt.Sprint(s.MachineID, " ", s.DatabaseID, " ", s.Tags.AgentStarted.StartTime, s.Tags.AgentStarted.PublicKey, ready.Status, ready.Reason)
	}
	return all, nil
}

// conditions are those of one type of all claims and machines, by the object's name.
func (l *lab) conditions(kind v1alpha1.ConditionType) map[string]metav1.Condition {
	l.T.Helper()
	var claims v1alpha1.WorkClaimList
	var machines v1alpha1.MachineList
	ctx := l.T.Context()
	if err := errors.Join(l.Client.List(ctx, &claims, client.InNamespace(l.Namespace)), l.Client.List(ctx, &machines, client.InNamespace(l.Namespace))); err != nil {
		l.T.Fatal(err)
	}
	all := map[string]metav1.Condition{}
	for _, c := range claims.Items {
		all[c.Name] = testbed.Condition(c.Status.Conditions, kind)
	}
	for _, m := range machines.Items {
		all[m.Name] = testbed.Condition(m.Status.Conditions, kind)
	}
	return all
}

// uids are those of all claims and machines, by the object's name.
func (l *lab) uids() map[string]string {
	l.T.Helper()
	var claims v1alpha1.WorkClaimList
	var machines v1alpha1.MachineList
	ctx := l.T.Context()
	if err := errors.Join(l.Client.List(ctx, &claims, client.InNamespace(l.Namespace)), l.Client.List(ctx, &machines, client.InNamespace(l.Namespace))); err != nil {
		l.T.Fatal(err)
	}
	all := map[string]string{}
	for _, c := range claims.Items {
		all[c.Name] = string(c.UID)
	}
	for _, m := range machines.Items {
		all[m.Name] = string(m.UID)
	}
	return all
}

// everythingDone is the whole history, as text.
func (l *lab) everythingDone() string {
	l.T.Helper()
	return l.Table(l.T.Context(), "SELECT machine_id, work_id, phase, event, timestamp, claim_key, fence FROM work_history ORDER BY machine_id, fence, phase")
}

// verifyRestored waits until the statuses of new objects say what those of the old ones did, and sees that nothing was done.
func (l *lab) verifyRestored(outcomes map[string]string, history string, oldUIDs map[string]string) {
	l.T.Helper()
	l.Eventually(testbed.Patience, "statuses have come back", func(ctx context.Context) error {
		now, err := l.readOutcomes(ctx)
		if err != nil {
			return err
		}
		var differences []string
		for name, want := range outcomes {
			if now[name] != want {
				differences = append(differences, fmt.Sprintf("%s: %s, before it was %s", name, now[name], want))
			}
		}
		if len(differences) > 0 {
			return errors.New(strings.Join(differences, "\n"))
		}
		return nil
	})
	now := l.uids()
	for name := range maps.Keys(outcomes) {
		if now[name] == "" || now[name] == oldUIDs[name] {
			l.T.Errorf("%s has UID %q, before it had %q: it is not a new object", name, now[name], oldUIDs[name])
		}
	}
	if now := l.everythingDone(); now != history {
		l.T.Errorf("something was done:\n%s\nbefore it was:\n%s", now, history)
	}
	if err := l.Broken(l.T.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		l.T.Error(err)
	}
}
