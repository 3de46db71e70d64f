// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

const (
	provider = "fleet"
	// attempts are so many that no claim fails by bad luck: what is Lost has a cap of its own, and the simulated failures end.
	attempts = 100
)

// fleet makes the provider whose machines are worked on: they take a while, and fail now and then.
func (r *rig) fleet(latency time.Duration, failurePercent int32) {
	r.T.Helper()
	s := testbed.Latency(latency)
	s.FailurePercent, s.Seed = ptr.To(failurePercent), ptr.To(int64(run.seed))
	config := r.Simulated(provider, s)
	config.Spec.Limits.Parallelism = ptr.To[int32](limit)
	r.Create(config)
	r.rules = slices.Concat(testbed.Rules(), testbed.RulesOfOneDatabase(), testbed.RulesOfLimits())
}

// limit is that of the provider: claims wait for each other at it.
const limit = 24

// feeder makes waves of machines and claims for them, each machine wanted by two claims, as long as less than a wave is left.
type feeder struct {
	rig    *rig
	size   int // machines in a wave
	cancel context.CancelFunc
	done   chan struct{}

	mu     sync.Mutex
	waves  int
	claims []string
	err    error
}

// feed begins to make waves. The caller stops it.
func (r *rig) feed(size int) *feeder {
	ctx, cancel := context.WithCancel(r.T.Context())
	f := &feeder{rig: r, size: size, cancel: cancel, done: make(chan struct{})}
	go f.run(ctx)
	return f
}

func (f *feeder) run(ctx context.Context) {
	defer close(f.done)
	ticker := time.NewTicker(testbed.PollInterval)
	defer ticker.Stop()
	for {
		// The database may be what is away.
		n, err := f.rig.Number(ctx, "SELECT count(*) FROM claims WHERE state NOT IN ('Complete', 'Failed')")
		if err == nil && n <= f.size/perClaim/2 {
			err := f.wave(ctx) // the API server may be what is away: it is tried again
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// strictEvery is one of how many claims fails with the first failure of a machine, where there are such: its end is a verdict of its owner.
const strictEvery = 5

// perClaim is how many machines a claim wants; it shares one of them with the next claim.
const perClaim = 3

// wave makes machines and claims. It goes on where it was when it is called again after an error.
func (f *feeder) wave(ctx context.Context) error {
	f.mu.Lock()
	n := f.waves
	f.mu.Unlock()
	var objects []client.Object
	var names []string
	for i := range f.size {
		name := fmt.Sprintf("m-%03d-%03d", n, i)
		names = append(names, name)
		objects = append(objects, f.rig.Machine(name, provider))
	}
	var claims []string
	for i := 0; i+perClaim <= f.size; i += perClaim - 1 {
		c := f.rig.Claim(fmt.Sprintf("c-%03d-%03d", n, i), names[i:i+perClaim]...)
		c.Spec.MaxAttempts = attempts
		if f.rig.strict && i%(strictEvery*(perClaim-1)) == 0 {
			c.Spec.MaxAttempts = 1
		}
		claims = append(claims, c.Name)
		objects = append(objects, c)
	}
	if err := createMissing(ctx, f.rig.Client, objects); err != nil {
		return err
	}
	// The database knows them a moment later; until then there is nothing to count.
	if err := f.known(ctx, claims); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waves++
	f.claims = append(f.claims, claims...)
	return nil
}

// createMissing makes objects that are not there, several at once.
func createMissing(ctx context.Context, c client.Client, objects []client.Object) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(testbed.RequestsAtOnce)
	for _, o := range objects {
		group.Go(func() error {
			if err := c.Create(ctx, o); !apierrors.IsAlreadyExists(err) {
				return err
			}
			return nil
		})
	}
	return group.Wait()
}

func (f *feeder) known(ctx context.Context, claims []string) error {
	ticker := time.NewTicker(testbed.PollInterval)
	defer ticker.Stop()
	for {
		n, err := f.rig.Number(ctx, "SELECT count(*) FROM claims WHERE claim_key = ANY($1)", claims)
		if err == nil && n == len(claims) {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
	}
}

// stop ends the making of waves, and returns the claims that there are. Faults may have held up the first wave until now; it is waited for.
func (f *feeder) stop() []string {
	f.rig.T.Helper()
	f.rig.Eventually(testbed.Patience, "work is made", func(context.Context) error {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.waves == 0 {
			return errors.Join(errors.New("the first wave is not"), f.err)
		}
		return nil
	})
	f.cancel()
	<-f.done
	return f.claims
}
