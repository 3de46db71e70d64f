// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package simulated_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/simulated"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newDriver(t *testing.T, c simulated.Config) *simulated.Driver {
	t.Helper()
	d, err := simulated.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func machine(i int) provider.Machine {
	return provider.Machine{
		ID: uuid.New(), DatabaseID: uuid.New(), Pool: "metal", Provider: "sim",
		ProviderID: fmt.Sprintf("m%d", i), Process: "AgentStart", Attempt: 1,
	}
}

func TestConformance(t *testing.T) {
	providertest.Run(t, func(t *testing.T) providertest.Harness {
		return providertest.Harness{
			Driver:  newDriver(t, simulated.Config{Seed: 1}),
			Machine: func(*testing.T) provider.Machine { return machine(int(uuid.New().ID())) },
			Failures: []providertest.Failure{{
				Name: "failing", Driver: newDriver(t, simulated.Config{FailurePercent: 100}), Machine: machine(1), Reason: provider.ReasonSimulated,
			}},
			Hanging: []providertest.Hanging{
				{Name: "hanging", Driver: newDriver(t, simulated.Config{HangPercent: 100}), Machine: machine(1)},
				{Name: "slow", Driver: newDriver(t, simulated.Config{Latency: time.Hour}), Machine: machine(1)},
			},
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []simulated.Config{
		{Latency: -1}, {FailurePercent: -1}, {HangPercent: -1}, {FailurePercent: 101}, {FailurePercent: 60, HangPercent: 41},
	} {
		if _, err := simulated.New(c); provider.ReasonOf(err) != provider.ReasonConfigInvalid || !provider.NeedsPerson(err) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// outcomes tells for a thousand machines whether they fail at the attempt.
func outcomes(t *testing.T, d provider.Driver, attempt int) (failed []bool, count int) {
	t.Helper()
	for i := range 1000 {
		m := machine(i)
		m.Attempt = attempt
		_, err := d.StartAgent(t.Context(), m, &providertest.Steps{})
		if err != nil && provider.ReasonOf(err) != provider.ReasonSimulated {
			t.Fatal(err)
		}
		if failed = append(failed, err != nil); err != nil {
			count++
		}
	}
	return failed, count
}

func TestFailuresAreOfMachineSeedAndAttempt(t *testing.T) {
	c := simulated.Config{FailurePercent: 30, Seed: 7}
	first, count := outcomes(t, newDriver(t, c), 1)
	if count < 240 || count > 360 {
		t.Errorf("%d of 1000 failed, want about 300", count)
	}
	again, _ := outcomes(t, newDriver(t, c), 1)
	if fmt.Sprint(first) != fmt.Sprint(again) {
		t.Error("the same seed, machines and attempt gave another outcome under other machine IDs")
	}
	if other, _ := outcomes(t, newDriver(t, simulated.Config{FailurePercent: 30, Seed: 8}), 1); fmt.Sprint(first) == fmt.Sprint(other) {
		t.Error("another seed gave the same outcome")
	}
	second, _ := outcomes(t, newDriver(t, c), 2)
	twice := 0
	for i := range first {
		if first[i] && second[i] {
			twice++
		}
	}
	if twice < 50 || twice > 140 {
		t.Errorf("%d of 1000 failed twice, want about 90: attempts are not independent", twice)
	}
}

func TestFailureEndsAtALaterFenceWhereAttemptsAreNotCounted(t *testing.T) {
	d := newDriver(t, simulated.Config{FailurePercent: 50})
	m, failed, done := machine(1), false, false
	m.Attempt = 0
	for m.Fence = range 64 {
		_, err := d.StartAgent(t.Context(), m, &providertest.Steps{})
		failed, done = failed || err != nil, done || err == nil
	}
	if !failed || !done {
		t.Errorf("in 64 fences: failed %v, succeeded %v; want both", failed, done)
	}
}

func TestKeyIsOfMachineAndSeed(t *testing.T) {
	m := machine(1)
	key := func(seed int64, m provider.Machine) []byte {
		a, err := newDriver(t, simulated.Config{Seed: seed}).StartAgent(t.Context(), m, &providertest.Steps{})
		if err != nil {
			t.Fatal(err)
		}
		return a.PublicKey
	}
	later := m
	later.Attempt, later.Fence = 9, 9
	if !bytes.Equal(key(1, m), key(1, later)) {
		t.Error("another attempt has another key")
	}
	other := m
	other.ID = uuid.New()
	if bytes.Equal(key(1, m), key(2, m)) || bytes.Equal(key(1, m), key(1, other)) {
		t.Error("another seed or another machine has the same key")
	}
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, begin := newDriver(t, simulated.Config{Latency: 3 * time.Second}), time.Now()
		if _, err := d.StartAgent(t.Context(), machine(1), &providertest.Steps{}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took != 3*time.Second {
			t.Errorf("took %s, want 3s", took)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin = time.Now()
		if _, err := d.StartAgent(ctx, machine(1), &providertest.Steps{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the deadline's", err)
		}
		if took := time.Since(begin); took != time.Second {
			t.Errorf("ended after %s, want 1s", took)
		}
	})
}
