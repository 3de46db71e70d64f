// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// slowest is how much of its throughput a fleet may lose because of machines that hang.
const slowest = 0.8

// TestF10 works on many machines beside a tenth as many whose hosts hang, and alone, before that and after it. The many are not slower, and each of those
// that hang ends as failed, with a cause, in time. It compares times, so nothing runs beside it: it is not parallel.
func TestF10(t *testing.T) {
	good, hang := pick(400, 10000), pick(40, 1000)
	const claims, timeout = 10, 5
	r := newRig(t, "F10", rigOptions{pods: 2})
	r.start()
	r.watchRules()
	r.Create(r.Simulated("hanging", testbed.Hanging()))
	r.record("hanging", testbed.Names("hanging", hang))
	for _, name := range []string{"before", "beside", "after"} {
		r.Create(r.Simulated(name, testbed.Latency(50*time.Millisecond)))
		r.record(name, testbed.Names(name, good))
	}
	before := r.timeFleet("before", good, claims)
	stuck := r.Claim("hanging", testbed.Names("hanging", hang)...)
	stuck.Spec.TimeoutSeconds, stuck.Spec.MaxAttempts = timeout, 1
	began := time.Now()
	r.Create(stuck)
	beside := r.timeFleet("beside", good, claims)
	r.Eventually(5*time.Minute, "all that hang have failed", func(ctx context.Context) error {
		n, err := r.Number(ctx, "SELECT count(*) FROM claim_machines WHERE claim_key = 'hanging' AND quarantined_at IS NOT NULL")
		if err == nil && n != hang {
			err = fmt.Errorf("%d of %d have", n, hang)
		}
		return err
	})
	run.tally.add("F10", "machines that hang, and failed", int64(hang))
	failed := time.Since(began)
	after := r.timeFleet("after", good, claims)
	ratio := (before + after).Seconds() / 2 / beside.Seconds()
	t.Logf("%d machines took %s and %s alone, and %s beside %d that hang, %.2f times as fast; those had all failed after %s", good,
		before.Round(time.Millisecond), after.Round(time.Millisecond), beside.Round(time.Millisecond), hang, ratio, failed.Round(time.Second))
	if ratio < pick(slowest/2, slowest) {
		t.Errorf("the fleet was %.2f times as fast beside machines that hang, want %.2f", ratio, slowest)
	}
	if n := r.Count("SELECT count(*) FROM work_history WHERE claim_key = 'hanging' AND phase = 1 AND (event <> 'Failed' OR failed_cause NOT LIKE 'TimedOut:%')"); n > 0 {
		t.Errorf("%d works on machines that hang ended otherwise: %s", n, r.Table(t.Context(), "SELECT event, failed_cause FROM work_history WHERE claim_key = 'hanging' AND phase = 1 LIMIT 5"))
	}
	r.stopWatching()
	r.VerifyStatuses()
	r.require("machines that hang, and failed")
}

// record makes machines in the database, of which no object tells: how fast objects are made is not what is measured.
func (r *rig) record(provider string, machines []string) {
	r.T.Helper()
	conn, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: r.Database, ComponentName: "faults", RuntimeInfo: "F10"}}).Open(false)
	if err != nil {
		r.T.Fatal(err)
	}
	defer conn.Close()
	group, ctx := errgroup.WithContext(r.T.Context())
	group.SetLimit(testbed.RequestsAtOnce)
	for _, name := range machines {
		group.Go(func() error {
			_, err := conn.RegisterMachine(ctx, bmdb.View{}, bmdb.MachineSpec{Pool: r.Namespace, Name: name, Provider: provider, ProviderID: name})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		r.T.Fatal(err)
	}
}

// timeFleet claims all machines of a provider and returns how long they took, from the first start to the last end.
func (r *rig) timeFleet(name string, machines, claims int) (took time.Duration) {
	r.T.Helper()
	names := testbed.Names(name, machines)
	var objects []client.Object
	each := machines / claims
	for i := range claims {
		c := r.Claim(fmt.Sprintf("%s-%d", name, i), names[i*each:(i+1)*each]...)
		objects = append(objects, c)
	}
	r.Create(objects...)
	r.Eventually(10*time.Minute, "all machines of "+name+" are done", func(ctx context.Context) error {
		n, err := r.Number(ctx, "SELECT count(*) FROM work_history WHERE event = 'Finished' AND claim_key LIKE $1 || '-%'", name)
		if err == nil && n != machines {
			err = fmt.Errorf("%d of %d are", n, machines)
		}
		return err
	})
	var seconds float64
	if err := r.DB.QueryRow(r.T.Context(), "SELECT extract(epoch FROM max(timestamp) - min(timestamp)) FROM work_history WHERE claim_key LIKE $1 || '-%'", name).Scan(&seconds); err != nil {
		r.T.Fatal(err)
	}
	return time.Duration(seconds * float64(time.Second))
}
