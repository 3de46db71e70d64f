// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/test/faults/wire"
)

const (
	// libraryTests are those of the library's tests that the quick run has.
	libraryTests = "^Test(Session|Work|Claim|Machine|Finish|Fail|Lock|Close|Reaper|Limit)"
	// countedTests are not run: they break connections or statements themselves, at the one that they look at, count round trips, rows, plans or attempts,
	// look at what is not known of a start whose answer is lost, play statements one by one, or keep a pool of one connection busy by the clock.
	countedTests = "^Test(Ambiguous|RoundTrips|RoundAtLimit|RowsTouched|PlansAreMadeOnce|LastPlace|NewMachineIsTheSameInEveryAttempt|ErrorOfClosureIsReturnedAtOnce|FirstTransientErrorDoesNotEndSession|Interleavings|" +
		"SessionWhosePoolIsBusyLives|GiveUpIsInterrupted|BeatDoesNotReviveAnExpiredLease)"
)

// TestF4Library runs the library's own tests against a database that answers a tenth of what the library says with an error: they pass, only
// slower. What the tests say to the database themselves is left alone. They wait by the clock, so nothing runs beside them: it is not parallel.
func TestF4Library(t *testing.T) {
	catalog, err := wire.ReadCatalog("../../bmdb")
	if err != nil {
		t.Fatal(err)
	}
	i := newInjector(endsAsData, func(what string) { run.tally.add("F4", "library: "+what, 1) })
	p, err := wire.Listen(t.Context(), wire.Options{Database: os.Getenv(postgres.URLEnv), Catalog: catalog, Hook: func(trip *wire.Trip, side wire.Side) wire.Verdict {
		if !strings.HasPrefix(trip.Application, "bmdb ") {
			return wire.Verdict{}
		}
		return i.onLibrary(trip, side)
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	args := []string{"test", "-count=1", "-timeout", "30m", "-skip", countedTests}
	if run.quick {
		args = append(args, "-run", libraryTests)
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, "./bmdb/")...)
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), postgres.URLEnv+"="+p.URL())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("the library's tests: %v\n%s", err, out)
	}
	for _, kind := range i.kinds {
		if i.counts[kind] == 0 {
			t.Errorf("nothing was put to the test: %q never struck", kind)
		}
	}
}

// onLibrary is onWire for callers that try nothing again themselves, as the tests are: an outcome is unknown only where the library finds it out,
// at a start and at an end that is data.
func (i *injector) onLibrary(t *wire.Trip, side wire.Side) wire.Verdict {
	resolved := endsAsData(t) || starts(t)
	// A test that beats once looks at what the beat says.
	if side == wire.After && !resolved || t.Has("Beat") {
		return wire.Verdict{}
	}
	v := i.choose(t, side)
	if starts(t) && (v.Fail == "40003" || v.Fail == "57P01") {
		v.Fail = "40001" // a start that did not take place is no error, and starts nothing
	}
	if !resolved && t.Has("COMMIT") && (v.Fail == "40003" || v.Fail == "57P01") {
		v.Fail = "40001"
	}
	i.tell(t, v)
	return v
}

func endsAsData(t *wire.Trip) bool { return t.Has("End") && !t.Has("Fence") }
