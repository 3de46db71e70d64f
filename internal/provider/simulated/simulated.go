// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package simulated is a driver for machines that do not exist. Its work takes
// a set time, fails and hangs in a set share of the cases, and does so
// deterministically: for tests, demonstrations and measurements of the
// operator with fleets of any size.
//
// What happens to a machine is a function of the seed, of which machine it is
// (pool, provider, provider ID) and of the attempt. A fresh database with other
// machine IDs sees the same failures, and a machine that failed once has a new
// chance at its next attempt.
package simulated

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// Config says how the machines behave. The zero value is a fleet that always
// succeeds at once.
type Config struct {
	// Latency is how long one call takes. 0: no time. Not negative.
	Latency time.Duration
	// FailurePercent and HangPercent are the shares of attempts that fail
	// after the latency, and that hang until their context is done. 0 to 100
	// each and in sum.
	FailurePercent, HangPercent int
	// Seed selects which attempts these are, and the agents' keys.
	Seed int64
}

// Driver simulates machines. It holds nothing but its configuration.
type Driver struct{ config Config }

var _ provider.Driver = (*Driver)(nil)

// New returns a driver, or a [*provider.Error] of reason ConfigInvalid.
func New(c Config) (*Driver, error) {
	invalid := func(format string, args ...any) (*Driver, error) {
		return nil, &provider.Error{Reason: provider.ReasonConfigInvalid, Message: fmt.Sprintf(format, args...), NeedsPerson: true}
	}
	switch {
	case c.Latency < 0:
		return invalid("latency %s is negative", c.Latency)
	case c.FailurePercent < 0 || c.HangPercent < 0:
		return invalid("failurePercent %d and hangPercent %d must not be negative", c.FailurePercent, c.HangPercent)
	case c.FailurePercent > 100-c.HangPercent:
		return invalid("failurePercent %d and hangPercent %d are together more than 100", c.FailurePercent, c.HangPercent)
	}
	return &Driver{config: c}, nil
}

// Close does nothing.
func (d *Driver) Close() error { return nil }

// StartAgent waits for the latency and returns a key that is the same at each
// call. It never says AlreadyRunning: it remembers nothing. Where this attempt
// fails it returns a [*provider.Error] of reason SimulatedFailure, where it
// hangs it returns when ctx is done.
func (d *Driver) StartAgent(ctx context.Context, m provider.Machine, s provider.Steps) (provider.Agent, error) {
	if err := provider.ContextError(ctx, "start simulated agent on "+m.ProviderID); err != nil {
		return provider.Agent{}, err
	}
	if err := s.Step(ctx, "Connect", 0); err != nil {
		return provider.Agent{}, fmt.Errorf("connect to simulated machine %s: %w", m.ProviderID, err)
	}
	dice := d.dice(m)
	if dice < d.config.HangPercent {
		<-ctx.Done()
		return provider.Agent{}, provider.ContextError(ctx, "simulated machine "+m.ProviderID+" hangs")
	}
	if err := wait(ctx, d.config.Latency); err != nil {
		return provider.Agent{}, provider.ContextError(ctx, "connect to simulated machine "+m.ProviderID)
	}
	if dice < d.config.HangPercent+d.config.FailurePercent {
		return provider.Agent{}, &provider.Error{
			Reason:  provider.ReasonSimulated,
			Message: fmt.Sprintf("simulated machine %s fails at attempt %d", m.ProviderID, attempt(m)),
		}
	}
	if err := s.Step(ctx, "Start", 50); err != nil {
		return provider.Agent{}, fmt.Errorf("start agent on simulated machine %s: %w", m.ProviderID, err)
	}
	// Whatever the callback did, what is cancelled has not succeeded.
	if err := provider.ContextError(ctx, "start simulated agent on "+m.ProviderID); err != nil {
		return provider.Agent{}, err
	}
	facts, err := json.Marshal(struct {
		Hostname  string `json:"hostname"`
		Simulated bool   `json:"simulated"`
	}{m.ProviderID, true})
	if err != nil {
		return provider.Agent{}, fmt.Errorf("encode facts of simulated machine %s: %w", m.ProviderID, err)
	}
	return provider.Agent{PublicKey: d.publicKey(m), Facts: facts}, nil
}

// attempt is what tells one try from the next: the attempt where the caller
// counts them, else the fence, which grows as well.
func attempt(m provider.Machine) int64 {
	if m.Attempt > 0 {
		return int64(m.Attempt)
	}
	return m.Fence
}

// dice is a number from 0 to 99 for this attempt on this machine.
func (d *Driver) dice(m provider.Machine) int {
	sum := d.hash("outcome", m, attempt(m))
	return int(binary.BigEndian.Uint64(sum[:8]) % 100)
}

// publicKey is of the machine's row as well: two rows must never have the same
// key, since an agent is found by it. Nobody has its other half: there is no
// agent that could sign.
func (d *Driver) publicKey(m provider.Machine) []byte {
	key := d.hash("key\x00"+m.ID.String(), m, 0)
	return key[:]
}

func (d *Driver) hash(purpose string, m provider.Machine, n int64) [sha256.Size]byte {
	// Lengths before the strings: "a","bc" is not "ab","c".
	var b []byte
	for _, s := range []string{purpose, m.Pool, m.Provider, m.ProviderID} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = binary.BigEndian.AppendUint64(b, uint64(d.config.Seed))
	b = binary.BigEndian.AppendUint64(b, uint64(n))
	return sha256.Sum256(b)
}

func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
