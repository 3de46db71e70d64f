// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
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
	l := newLab(t, labOptions{})
	seed, random := randomness(t)
	t.Logf("seed %d; %s=%d repeats its choices", seed, seedEnv, seed)
	var pods []*operator
	for _, name := range []string{"operator-a", "operator-b", "operator-c"} {
		pods = append(pods, l.start(name, "--lease", "3s", "--database-connections", strconv.Itoa(poolConnections)))
	}
	fleet, broken := latency(200*time.Millisecond), latency(200*time.Millisecond)
	fleet.FailurePercent, fleet.Seed = ptr.To[int32](failurePercent), ptr.To[int64](simulatedSeed)
	broken.FailurePercent = ptr.To[int32](100)
	config := l.simulated("fleet", fleet)
	// So few that claims wait for each other, and that there is work under way for the kills to hit.
	config.Spec.Limits.Parallelism = ptr.To[int32](20)
	l.create(config, l.simulated("broken", broken))
	l.createFleet("fleet", names("sim", killClaims)...)
	l.createFleet("broken", names("broken", brokenMachines)...)
	before := l.load(pods)
	t.Logf("before: %v", before)

	began := time.Now()
	stop := l.watch(rules())
	claims := l.overlappingClaims()
	created := make(chan error, 1)
	go func() { created <- l.createOver(kills*killEvery, claims) }()
	l.killFor(random, pods)
	if err := <-created; err != nil {
		t.Fatal(err)
	}
	quiet := time.Now()
	l.eventually(peace, "all claims have ended", func(ctx context.Context) error {
		n, err := l.number(ctx, "SELECT count(*) FROM claims WHERE state IN ('Complete', 'Failed')")
		if err == nil && n != killClaims {
			err = fmt.Errorf("%d of %d have", n, killClaims)
		}
		return err
	})
	t.Logf("all claims had ended %s after the first kill was due, %s after the last was over", time.Since(began).Round(time.Second), time.Since(quiet).Round(time.Second))
	stop()

	if err := l.broken(t.Context(), append(rules(), rulesAtRest()...)); err != nil {
		t.Error(err)
	}
	l.verifyEnds(claims)
	l.verifyStatuses()
	l.eventually(patience, "operators need what they needed before", func(context.Context) error {
		now := l.load(pods)
		if now.goroutines > before.goroutines+slackGoroutines || now.connections > before.connections {
			return fmt.Errorf("%v, before it was %v", now, before)
		}
		return nil
	})
	t.Logf("after: %v; %d works finished, %d failed, %d were lost", l.load(pods),
		l.count("SELECT count(*) FROM work_history WHERE event = 'Finished'"), l.count("SELECT count(*) FROM work_history WHERE event = 'Failed'"),
		l.count("SELECT count(*) FROM work_history WHERE event = 'Lost'"))
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
	machines, broken := names("sim", killClaims), names("broken", brokenMachines)
	claims := make([]*v1alpha1.WorkClaim, killClaims)
	for i, name := range names("claim", killClaims) {
		claims[i] = l.claim(name, machines[i], machines[(i+1)%killClaims])
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
	group, ctx := errgroup.WithContext(l.t.Context())
	group.SetLimit(requestsAtOnce)
	for _, c := range claims {
		group.Go(func() error { return l.client.Create(ctx, c) })
		select {
		case <-ctx.Done():
			return group.Wait()
		case <-ticker.C:
		}
	}
	return group.Wait()
}

// killFor kills operators, one after the other, and starts each again at once. It fails the test unless all kills were kills, and hit.
func (l *lab) killFor(random *rand.Rand, pods []*operator) {
	l.t.Helper()
	ticker := time.NewTicker(killEvery)
	defer ticker.Stop()
	killed := map[string]int{}
	for n := range kills {
		<-ticker.C
		victim := l.victim(random, pods)
		if !victim.running() {
			l.t.Fatalf("%s has ended by itself: %v", victim.name, victim.process.Err())
		}
		if !victim.kill() {
			l.t.Errorf("%s did not die of kill %d", victim.name, n)
			continue
		}
		killed[victim.name]++
		victim.launch()
	}
	for _, o := range pods {
		if err := o.process.WaitReady(l.t.Context(), o.ready); err != nil {
			l.t.Fatalf("%s was started again: %v", o.name, err)
		}
	}
	total := 0
	for _, n := range killed {
		total += n
	}
	if total != kills {
		l.t.Errorf("%d kills of %d were counted: %v", total, kills, killed)
	}
	// A pod that is killed before it has a session leaves nothing to take over, and one that the machine was too busy for may have lost
	// its session without being killed: how many expire is not certain, how many live in the end is.
	l.eventually(patience, "sessions of killed operators are ended", func(ctx context.Context) error {
		expired, err := l.number(ctx, "SELECT count(*) FROM sessions WHERE session_end_reason = 'expired'")
		if err != nil {
			return err
		}
		living, err := l.number(ctx, "SELECT count(*) FROM sessions WHERE session_ended_at IS NULL")
		if err == nil && (living != len(pods) || expired < kills/4) {
			err = fmt.Errorf("%d live, %d expired", living, expired)
		}
		return err
	})
	if n := l.count("SELECT count(*) FROM work_history WHERE event = 'Lost'"); n < kills/4 {
		l.t.Errorf("%d works were lost: the kills hit nothing", n)
	}
}

// victim chooses an operator at random: of those that work on machines, if there are any within a while, else of all.
func (l *lab) victim(random *rand.Rand, pods []*operator) *operator {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), killEvery/2)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		var working []*operator
		for _, o := range pods {
			n, err := l.number(ctx, `SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id
				WHERE w.work_id IS NOT NULL AND s.session_runtime_info = $1 AND s.session_ended_at IS NULL
				AND s.session_created_at = (SELECT max(session_created_at) FROM sessions WHERE session_runtime_info = $1)`, o.name)
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
	l.t.Helper()
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
		if err := l.db.QueryRow(l.t.Context(), "SELECT state FROM claims WHERE claim_key = $1", c.Name).Scan(&state); err != nil {
			l.t.Fatal(err)
		}
		switch {
		case sure && state != "Complete":
			l.t.Errorf("claim %s is %s, though each of its machines can be done in %d attempts", c.Name, state, killAttempts)
		case hopeless && state != "Failed":
			l.t.Errorf("claim %s is %s, though one of its machines is broken", c.Name, state)
		}
		if state == "Complete" {
			complete++
		} else {
			failed++
		}
	}
	l.t.Logf("%d claims are complete, %d failed", complete, failed)
}

// failsAtMost asks the driver whether a machine succeeds after at most n failures.
func (l *lab) failsAtMost(name string, n int) bool {
	l.t.Helper()
	driver, err := simulated.New(simulated.Config{FailurePercent: failurePercent, Seed: simulatedSeed})
	if err != nil {
		l.t.Fatal(err)
	}
	for attempt := 1; attempt <= n+1; attempt++ {
		m := provider.Machine{Pool: l.namespace, Name: name, Provider: "fleet", ProviderID: name, Attempt: attempt}
		_, err := driver.StartAgent(l.t.Context(), m, noSteps{})
		if err == nil {
			return true
		}
		if provider.ReasonOf(err) != provider.ReasonSimulated {
			l.t.Fatal(err)
		}
	}
	return false
}

// noSteps are steps of a work that nobody can lose.
type noSteps struct{}

func (noSteps) Step(context.Context, string, int) error                  { return nil }
func (noSteps) PinHostKey(context.Context, []byte) error                 { return nil }
func (noSteps) UseOwnerAcceptance(context.Context, []byte) (bool, error) { return false, nil }

// verifyStatuses waits until the status of every claim says what the database does.
func (l *lab) verifyStatuses() {
	l.t.Helper()
	l.eventually(patience, "statuses say what the database does", func(ctx context.Context) error {
		var list v1alpha1.WorkClaimList
		if err := l.client.List(ctx, &list, client.InNamespace(l.namespace)); err != nil {
			return err
		}
		var errs []error
		for i := range list.Items {
			if err := l.compareClaim(ctx, &list.Items[i]); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs[:min(len(errs), 5)]...)
	})
}

func (l *lab) compareClaim(ctx context.Context, c *v1alpha1.WorkClaim) error {
	var state, progress string
	var succeeded, failed, active int32
	var rev int64
	if err := l.db.QueryRow(ctx, `SELECT state, succeeded + skipped, failed, active, rev, (succeeded + skipped) || '/' || completions
		FROM claims WHERE pool = $1 AND claim_key = $2`, c.Namespace, c.EffectiveKey()).Scan(&state, &succeeded, &failed, &active, &rev, &progress); err != nil {
		return err
	}
	s := &c.Status
	got := fmt.Sprint(ptr.Deref(s.Succeeded, -1), ptr.Deref(s.Failed, -1), ptr.Deref(s.Active, -1), s.Revision, s.Progress,
		isTrue(s.Conditions, v1alpha1.ConditionFinished), isTrue(s.Conditions, v1alpha1.ConditionComplete), isTrue(s.Conditions, v1alpha1.ConditionFailed))
	want := fmt.Sprint(succeeded, failed, active, rev, progress, true, state == "Complete", state == "Failed")
	if got != want {
		return fmt.Errorf("claim %s shows %s, the database has %s", c.Name, got, want)
	}
	return nil
}

// slackGoroutines is what HTTP connections and timers may differ by, in the pod that has most. What leaks with works or kills is far above.
const slackGoroutines = 20

// needs is what operators need while they are idle.
type needs struct {
	goroutines  float64 // of the pod that has most
	connections int     // to the database, of all pods
}

// load returns what operators need when that does not change any more.
func (l *lab) load(pods []*operator) needs {
	l.t.Helper()
	var last needs
	l.eventually(patience, "operators settle", func(ctx context.Context) error {
		var now needs
		for _, o := range pods {
			n, err := o.gauge(ctx, "go_goroutines")
			if err != nil {
				return err
			}
			now.goroutines = max(now.goroutines, n)
		}
		var err error
		now.connections, err = l.number(ctx, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'bmdb %'")
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
