// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"slices"
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
// that hang ends as failed, with a cause, in time. Where the machine that runs this was not as fast before as after, that is done again, and the median
// counts. It compares times, so nothing runs beside it: it is not parallel.
func TestF10(t *testing.T) {
	good, hang := pick(400, 10000), pick(40, 1000)
	const noisy = 0.1
	// Statuses come as often as they do by default: each is of a thousand names, and would take the time that is measured.
	r := newRig(t, "F10", rigOptions{pods: 2, flags: []string{"--status-interval", "5s"}})
	r.start()
	r.watchRules()
	r.Create(r.Simulated("hanging", testbed.Hanging()))
	r.record("alone-0", good)
	before := r.timeFleet("alone-0", good)
	var ratios []float64
	for round := 1; round <= pick(1, 3); round++ {
		name := fmt.Sprintf("beside-%d", round)
		r.record(name, good)
		hanging := r.hang(fmt.Sprintf("hanging-%d", round), hang)
		beside := r.timeFleet(name, good)
		failed := hanging()
		name = fmt.Sprintf("alone-%d", round)
		r.record(name, good)
		after := r.timeFleet(name, good)
		ratios = append(ratios, (before+after).Seconds()/2/beside.Seconds())
		t.Logf("%d machines took %s and %s alone, and %s beside %d that hang, %.2f times as fast; those had all failed after %s", good,
			before.Round(time.Millisecond), after.Round(time.Millisecond), beside.Round(time.Millisecond), hang, ratios[round-1], failed.Round(time.Second))
		if (before - after).Abs().Seconds() < noisy*min(before, after).Seconds() {
			break
		}
		before = after
	}
	if ratio := median(ratios); ratio < pick(slowest/2, slowest) {
		t.Errorf("the fleet was %.2f times as fast beside machines that hang, want %.2f", ratio, slowest)
	}
	if n := r.Count("SELECT count(*) FROM work_history WHERE claim_key LIKE 'hanging-%' AND phase = 1 AND (event <> 'Failed' OR failed_cause NOT LIKE 'TimedOut:%')"); n > 0 {
		t.Errorf("%d works on machines that hang ended otherwise: %s", n, r.Table(t.Context(), "SELECT event, failed_cause FROM work_history WHERE claim_key LIKE 'hanging-%' AND phase = 1 LIMIT 5"))
	}
	r.stopWatching()
	r.VerifyStatuses()
	r.require("machines that hang, and failed")
}

// median is that of at least one number.
func median(numbers []float64) float64 {
	sorted := slices.Sorted(slices.Values(numbers))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

// hang claims machines that hang. The function that it returns waits until all have failed, and says after how long.
func (r *rig) hang(name string, machines int) (failed func() time.Duration) {
	r.T.Helper()
	const timeout = 5
	names := testbed.Names(name, machines)
	r.register("hanging", names)
	stuck := r.Claim(name, names...)
	stuck.Spec.TimeoutSeconds, stuck.Spec.MaxAttempts = timeout, 1
	began := time.Now()
	r.Create(stuck)
	return func() time.Duration {
		r.T.Helper()
		r.Eventually(5*time.Minute, "all that hang have failed", func(ctx context.Context) error {
			n, err := r.Number(ctx, "SELECT count(*) FROM claim_machines WHERE claim_key = $1 AND quarantined_at IS NOT NULL", name)
			if err == nil && n != machines {
				err = fmt.Errorf("%d of %d have", n, machines)
			}
			return err
		})
		run.tally.add("F10", "machines that hang, and failed", int64(machines))
		return time.Since(began)
	}
}

// record makes a provider and its machines. They take so long that pods have all their places in use, which is what claims take from one another, and not
// that long with the processors, whose time the suite takes as well.
func (r *rig) record(provider string, machines int) {
	r.T.Helper()
	r.Create(r.Simulated(provider, testbed.Latency(time.Second)))
	r.register(provider, testbed.Names(provider, machines))
}

// register makes machines in the database, of which no object tells: how fast objects are made is not what is measured.
func (r *rig) register(provider string, machines []string) {
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
func (r *rig) timeFleet(name string, machines int) (took time.Duration) {
	r.T.Helper()
	const claims = 40
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
