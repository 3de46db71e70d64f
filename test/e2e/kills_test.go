// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/utils/ptr"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/simulated"
)

// seedEnv names the environment variable that repeats the choices of an earlier run.
const seedEnv = "BMDB_E2E_SEED"

const (
	killClaims = 300
	// brokenMachines fail at every attempt; the others fail now and then.
	brokenMachines  = 10
	killAttempts    = 3
	killEvery       = 5 * time.Second
	kills           = 12
	peace           = 3 * time.Minute
	simulatedSeed   = 7
	failurePercent  = 30
	poolConnections = 6
)

// TestSurvivesKills kills one of three operators every five seconds for a minute, while claims come in, fail, and compete for machines.
// Nothing that must hold is broken at any time; in the peace that follows every claim comes to the end that is its own, its status says
// what the database does, and the operators are as they were before.
func TestSurvivesKills(t *testing.T) {
	l := newLab(t, testbed.Options{})
	seed, random := randomness(t)
	t.Logf("seed %d; %s=%d repeats its choices", seed, seedEnv, seed)
	var pods []*testbed.Operator
	for _, name := range []string{"operator-a", "operator-b", "operator-c"} {
		pods = append(pods, l.Start(name, "--lease", "3s", "--database-connections", strconv.Itoa(poolConnections)))
	}
	fleet, broken := testbed.Latency(200*time.Millisecond), testbed.Latency(200*time.Millisecond)
	fleet.FailurePercent, fleet.Seed = ptr.To[int32](failurePercent), ptr.To[int64](simulatedSeed)
	broken.FailurePercent = ptr.To[int32](100)
	config := l.Simulated("fleet", fleet)
	// So few that claims wait for each other, and that there is work under way for the kills to hit.
	config.Spec.Limits.Parallelism = ptr.To[int32](20)
	l.Create(config, l.Simulated("broken", broken))
	l.CreateFleet("fleet", testbed.Names("sim", killClaims)...)
	l.CreateFleet("broken", testbed.Names("broken", brokenMachines)...)
	before := l.load(pods)
	t.Logf("before: %v", before)

	began := time.Now()
	stop := l.Watch(testbed.Rules())
	claims := l.overlappingClaims()
	created := make(chan error, 1)
	go func() { created <- l.createOver(kills*killEvery, claims) }()
	l.killFor(random, pods)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	quiet := time.Now()
	l.Eventually(peace, "all claims have ended", func(ctx context.Context) error {
		n, err := l.Number(ctx, "SELECT count(*) FROM claims WHERE state IN ('Complete', 'Failed')")
		if err == nil && n != killClaims {
			err = fmt.Errorf("%d of %d have", n, killClaims)
		}
		return err
	})
	t.Logf("all claims had ended %s after the first kill was due, %s after the last was over", time.Since(began).Round(time.Second), time.Since(quiet).Round(time.Second))
	stop()

	if err := l.Broken(t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		t.Error(err)
	}
	l.verifyEnds(claims)
	l.VerifyStatuses()
	l.Eventually(testbed.Patience, "operators need what they needed before", func(context.Context) error {
		now := l.load(pods)
		if now.goroutines > before.goroutines+slackGoroutines || now.connections > before.connections {
			return fmt.Errorf("%v, before it was %v", now, before)
		}
		return nil
	})
	t.Logf("after: %v; %d works finished, %d failed, %d were lost", l.load(pods),
		l.Count("SELECT count(*) FROM work_history WHERE event = 'Finished'"), l.Count("SELECT count(*) FROM work_history WHERE event = 'Failed'"),
		l.Count("SELECT count(*) FROM work_history WHERE event = 'Lost'"))
}

func randomness(t *testing.T) (uint64, *rand.Rand) {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv(seedEnv); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedEnv, err)
		}
	}
	return seed, rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // Nobody is to be kept from guessing.
}

// overlappingClaims are claims that share each machine with a neighbour: who is first does it, the other skips it. Some have a machine that
// is broken.
func (l *lab) overlappingClaims() []*v1alpha1.WorkClaim {
	machines, broken := testbed.Names("sim", killClaims), testbed.Names("broken", brokenMachines)
	claims := make([]*v1alpha1.WorkClaim, killClaims)
	for i, name := range testbed.Names("claim", killClaims) {
		claims[i] = l.Claim(name, machines[i], machines[(i+1)%killClaims])
		if i%(killClaims/brokenMachines) == 0 {
			claims[i].Spec.Machines.Names = append(claims[i].Spec.Machines.Names, broken[i/(killClaims/brokenMachines)])
		}
		claims[i].Spec.MaxAttempts = killAttempts
	}
	return claims
}

// createOver makes claims, evenly over a time as long as the API server is quick enough. It is safe for concurrent use.
func (l *lab) createOver(during time.Duration, claims []*v1alpha1.WorkClaim) error {
	ticker := time.NewTicker(during / time.Duration(len(claims)))
	defer ticker.Stop()
	group, ctx := errgroup.WithContext(l.T.Context())
	group.SetLimit(testbed.RequestsAtOnce)
	for _, c := range claims {
		group.Go(func() error { return l.Client.Create(ctx, c) })
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-ticker.C:
		}
	}
	return group.Wait()
}

// killFor kills operators, one after the other, and starts each again at once. It fails the test unless all kills were kills, and hit.
func (l *lab) killFor(random *rand.Rand, pods []*testbed.Operator) {
	l.T.Helper()
	ticker := time.NewTicker(killEvery)
	defer ticker.Stop()
	killed := map[string]int{}
	for n := range kills {
		<-ticker.C
		victim := l.victim(random, pods)
		if !victim.Running() {
			l.T.Fatalf("%s has ended by itself: %v", victim.Name, victim.Process.Err())
		}
		if !victim.Kill() {
			l.T.Errorf("%s did not die of kill %d", victim.Name, n)
			continue
		}
		killed[victim.Name]++
		victim.Launch()
	}
	for _, o := range pods {
		if err := o.Process.WaitReady(l.T.Context(), o.Ready); err != nil {
			l.T.Fatalf("%s was started again: %v", o.Name, err)
		}
	}
	total := 0
	for _, n := range killed {
		total += n
	}
	if total != kills {
		l.T.Errorf("%d kills of %d were counted: %v", total, kills, killed)
	}
	// A pod that is killed before it has a session leaves nothing to take over, and one that the machine was too busy for may have lost
	// its session without being killed: how many expire is not certain, how many live in the end is.
	l.Eventually(testbed.Patience, "sessions of killed operators are ended", func(ctx context.Context) error {
		expired, err := l.Number(ctx, "SELECT count(*) FROM sessions WHERE session_end_reason = 'expired'")
		if err != nil {
			return err
		}
		living, err := l.Number(ctx, "SELECT count(*) FROM sessions WHERE session_ended_at IS NULL")
		if err == nil && (living != len(pods) || expired < kills/4) {
			err = fmt.Errorf("%d live, %d expired", living, expired)
		}
		return err
	})
	if n := l.Count("SELECT count(*) FROM work_history WHERE event = 'Lost'"); n < kills/4 {
		l.T.Errorf("%d works were lost: the kills hit nothing", n)
	}
}

// victim chooses an operator at random: of those that work on machines, if there are any within a while, else of all.
func (l *lab) victim(random *rand.Rand, pods []*testbed.Operator) *testbed.Operator {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(l.T.Context(), killEvery/2)
	defer cancel()
	ticker := time.NewTicker(testbed.PollInterval)
	defer ticker.Stop()
	for {
		var working []*testbed.Operator
		for _, o := range pods {
			n, err := l.Number(ctx, `SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id
				WHERE w.work_id IS NOT NULL AND s.session_runtime_info = $1 AND s.session_ended_at IS NULL
				AND s.session_created_at = (SELECT max(session_created_at) FROM sessions WHERE session_runtime_info = $1)`, o.Name)
			if err == nil && n > 0 {
				working = append(working, o)
			}
		}
		if len(working) > 0 {
			return working[random.IntN(len(working))]
		}
		select {
		case <-ctx.Done():
			return pods[random.IntN(len(pods))]
		case <-ticker.C:
		}
	}
}

// verifyEnds holds the claims' ends against what the simulated machines do.
func (l *lab) verifyEnds(claims []*v1alpha1.WorkClaim) {
	l.T.Helper()
	complete, failed := 0, 0
	for _, c := range claims {
		// Attempts count on the machine, over both of the claims that want it: no claim is at its end before they are killAttempts.
		sure, hopeless := true, false
		for _, m := range c.Spec.Machines.Names {
			isBroken := strings.HasPrefix(m, "broken-")
			hopeless = hopeless || isBroken
			sure = sure && !isBroken && l.failsAtMost(m, killAttempts-1)
		}
		var state string
		if err := l.DB.QueryRow(l.T.Context(), "SELECT state FROM claims WHERE claim_key = $1", c.Name).Scan(&state); err != nil {
			l.T.Fatal(err)
		}
		switch {
		case sure && state != "Complete":
			l.T.Errorf("claim %s is %s, though each of its machines can be done in %d attempts", c.Name, state, killAttempts)
		case hopeless && state != "Failed":
			l.T.Errorf("claim %s is %s, though one of its machines is broken", c.Name, state)
		}
		if state == "Complete" {
			complete++
		} else {
			failed++
		}
	}
	l.T.Logf("%d claims are complete, %d failed", complete, failed)
}

// failsAtMost asks the driver whether a machine succeeds after at most n failures.
func (l *lab) failsAtMost(name string, n int) bool {
	l.T.Helper()
	driver, err := simulated.New(simulated.Config{FailurePercent: failurePercent, Seed: simulatedSeed})
	if err != nil {
		l.T.Fatal(err)
	}
	for attempt := 1; attempt <= n+1; attempt++ {
		m := provider.Machine{Pool: l.Namespace, Name: name, Provider: "fleet", ProviderID: name, Attempt: attempt}
		_, err := driver.StartAgent(l.T.Context(), m, noSteps{})
		if err == nil {
			return true
		}
		if provider.ReasonOf(err) != provider.ReasonSimulated {
			l.T.Fatal(err)
		}
	}
	return false
}

// noSteps are steps of a work that nobody can lose.
type noSteps struct{}

func (noSteps) Step(context.Context, string, int) error                  { return nil }
func (noSteps) PinHostKey(context.Context, []byte) error                 { return nil }
func (noSteps) UseOwnerAcceptance(context.Context, []byte) (bool, error) { return false, nil }

// slackGoroutines is what HTTP connections and timers may differ by, in the pod that has most. What leaks with works or kills is far above.
const slackGoroutines = 20

// needs is what operators need while they are idle.
type needs struct {
	goroutines  float64 // of the pod that has most
	connections int     // to the database, of all pods
}

// load returns what operators need when that does not change any more.
func (l *lab) load(pods []*testbed.Operator) needs {
	l.T.Helper()
	var last needs
	l.Eventually(testbed.Patience, "operators settle", func(ctx context.Context) error {
		var now needs
		for _, o := range pods {
			n, err := o.Gauge(ctx, "go_goroutines")
			if err != nil {
				return err
			}
			now.goroutines = max(now.goroutines, n)
		}
		var err error
		now.connections, err = l.Number(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'bmdb %'")
		if err != nil {
			return err
		}
		before := last
		last = now
		if now != before {
			return fmt.Errorf("%v, a moment ago %v", now, before)
		}
		return nil
	})
	return last
}
