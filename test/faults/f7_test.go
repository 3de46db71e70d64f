// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"testing"
	"time"

	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestF7 destroys a cluster and applies its manifests to an empty one, with the same database: the machines are the same rows, the statuses are
// the same, and nothing is done again.
func TestF7(t *testing.T) {
	t.Parallel()
	run.spare.Lock()
	defer run.spare.Unlock()
	r := newRig(t, "F7", rigOptions{pods: 2})
	r.start()
	r.watchRules()
	manifests := r.gitManifests(pick(4, 40), 3)
	for _, o := range manifests() {
		r.apply(o)
	}
	r.verify()
	for _, o := range manifests() {
		if _, ok := o.(*v1alpha1.Machine); ok {
			r.awaitShown(o.GetName())
		}
	}
	before, history := r.outcomes(), r.everythingDone()
	for _, p := range r.pods {
		if p.kill(p.process.Load()) {
			r.struck("cluster destroyed, a pod with it")
		}
	}
	empty := newRig(t, "F7", rigOptions{Options: testbed.Options{Plane: sparePlane(t), Database: r.Database, Namespace: r.Namespace}, pods: 2})
	empty.start()
	for _, o := range manifests() {
		empty.apply(o)
		empty.struck("object applied to the empty cluster")
	}
	empty.Eventually(testbed.Patience, "the statuses are those of before", func(context.Context) error {
		for name, now := range empty.outcomes() {
			if now != before[name] {
				return fmt.Errorf("%s shows %s, before it was %s", name, now, before[name])
			}
		}
		if now := empty.outcomes(); len(now) != len(before) {
			return fmt.Errorf("%d objects show something, before there were %d", len(now), len(before))
		}
		return nil
	})
	if now := empty.everythingDone(); now != history {
		t.Errorf("something was done:\n%s\nbefore it was:\n%s", now, history)
	}
	if n := len(empty.witness.Touches()); n > 0 {
		t.Errorf("machines were touched %d times", n)
	}
	if err := empty.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
	empty.require("cluster destroyed, a pod with it", "object applied to the empty cluster")
}

// outcomes are what objects show that must never be lost, by name.
func (r *rig) outcomes() map[string]string {
	r.T.Helper()
	all := map[string]string{}
	var claims v1alpha1.WorkClaimList
	var machines v1alpha1.MachineList
	if err := errors.Join(r.Client.List(r.T.Context(), &claims, client.InNamespace(r.Namespace)), r.Client.List(r.T.Context(), &machines, client.InNamespace(r.Namespace))); err != nil {
		r.T.Fatal(err)
	}
	for _, c := range claims.Items {
		s := &c.Status
		all[c.Name] = fmt.Sprint(s.Key, " ", s.DatabaseID, " ", s.Progress, ptr.Deref(s.Succeeded, -1), ptr.Deref(s.Failed, -1), s.SkippedMachines, s.StartTime, s.CompletionTime,
			testbed.IsTrue(s.Conditions, v1alpha1.ConditionComplete), testbed.IsTrue(s.Conditions, v1alpha1.ConditionFailed))
	}
	for _, m := range machines.Items {
		s := &m.Status
		all[m.Name] = fmt.Sprint(s.MachineID, " ", s.DatabaseID, " ", s.Tags.AgentStarted.StartTime, s.Tags.AgentStarted.PublicKey)
	}
	return maps.Clone(all)
}

// everythingDone is the whole history, as text.
func (r *rig) everythingDone() string {
	r.T.Helper()
	return r.Table(r.T.Context(), "SELECT machine_id, work_id, phase, event, timestamp, claim_key, fence FROM work_history ORDER BY machine_id, fence, phase")
}

// TestF12 cuts one of two clusters off from the database that they share, for longer than its role is kept. The other manages then, and its spec
// counts. What the first was told meanwhile does not win when it is back.
func TestF12(t *testing.T) {
	t.Parallel()
	var plane *devenv.ControlPlane
	if run.quick {
		run.spare.Lock()
		defer run.spare.Unlock()
		plane = sparePlane(t)
	} else {
		plane = startPlane(t) // for a quarter of an hour, for which others would wait
		t.Cleanup(func() {
			if err := plane.Stop(); err != nil {
				t.Error(err)
			}
		})
	}
	silence := pick(6*time.Second, 5*time.Minute)
	flags := func(cluster string) []string {
		return []string{"--cluster-id", cluster, "--manager-takeover-after", silence.String()}
	}
	first := newRig(t, "F12", rigOptions{pods: 2, lease: 2 * time.Second, flags: flags("first")})
	second := newRig(t, "F12", rigOptions{Options: testbed.Options{Plane: plane, Database: first.Database, Namespace: first.Namespace}, pods: 2, lease: 2 * time.Second, flags: flags("second"), other: first})
	var lines []*line
	for _, p := range first.pods {
		lines = append(lines, newLine(t, p, first.Database))
	}
	first.start()
	manifests := first.gitManifests(6, 3)
	for _, o := range manifests() {
		first.apply(o)
	}
	first.AwaitSome("the first cluster works", "SELECT count(*) FROM work_history")
	second.start()
	second.watchRules()
	managers := second.watchManagers()
	for _, o := range manifests() {
		second.apply(o)
	}
	second.Eventually(testbed.Patience, "the second cluster is known", func(ctx context.Context) error {
		return second.Some(ctx, "SELECT count(*) FROM claim_views WHERE cluster = 'second'")
	})
	for _, l := range lines {
		l.cut()
	}
	first.struck("cluster cut off from the database")
	second.Eventually(silence+testbed.Patience, "the second cluster manages", func(ctx context.Context) error {
		n, err := second.Number(ctx, "SELECT count(*) FROM claim_views WHERE cluster = 'first' AND manages")
		if err == nil && n > 0 {
			err = fmt.Errorf("the first manages %d claims", n)
		}
		return err
	})
	first.struck("roles taken over")
	// Nobody hears of this but the API server of the cluster that is cut off.
	changed := 0
	for _, o := range manifests() {
		var c v1alpha1.WorkClaim
		if _, ok := o.(*v1alpha1.WorkClaim); !ok || first.Client.Get(t.Context(), client.ObjectKeyFromObject(o), &c) != nil {
			continue
		}
		before := c.DeepCopy()
		c.Spec.Parallelism = 77
		if err := first.Client.Patch(t.Context(), &c, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		changed++
	}
	run.tally.add("F12", "specs changed under the stale manager", int64(changed))
	if !run.quick {
		first.during(15*time.Minute - silence)
	}
	for _, l := range lines {
		l.mend()
	}
	for _, p := range first.pods {
		first.awaitLiving(p)
	}
	second.verify()
	first.VerifyStatuses()
	if n := second.Count("SELECT count(*) FROM claims WHERE parallelism = 77"); n > 0 {
		t.Errorf("%d specs of the stale manager won", n)
	}
	if err := managers(); err != nil {
		t.Error(err)
	}
	first.require("cluster cut off from the database", "roles taken over", "specs changed under the stale manager")
}

// watchManagers looks, until the returned function is called, whether anything has two managers.
func (r *rig) watchManagers() (stop func() error) {
	ctx, cancel := context.WithCancel(r.T.Context())
	done := make(chan error, 1)
	go func() {
		ticker := time.NewTicker(testbed.PollInterval)
		defer ticker.Stop()
		for {
			n, err := r.Number(ctx, `SELECT (SELECT count(*) FROM (SELECT 1 FROM claim_views WHERE manages GROUP BY pool, claim_key HAVING count(*) > 1) c)
				+ (SELECT count(*) FROM (SELECT 1 FROM machine_views WHERE manages GROUP BY machine_id HAVING count(*) > 1) m)`)
			if err == nil && n > 0 {
				done <- fmt.Errorf("%d claims and machines have two managers", n)
				return
			}
			select {
			case <-ctx.Done():
				done <- nil
				return
			case <-ticker.C:
			}
		}
	}()
	return func() error {
		cancel()
		return <-done
	}
}
