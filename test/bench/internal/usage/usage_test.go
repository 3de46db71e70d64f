// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package usage_test

import (
	"os"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/test/bench/internal/usage"
)

func TestOfItself(t *testing.T) {
	before, err := usage.Of(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if before.Resident <= 0 || before.Peak < before.Resident {
		t.Errorf("memory is %d bytes, at most %d", before.Resident, before.Peak)
	}
	after := before
	for after.CPU < before.CPU+50*time.Millisecond {
		if after, err = usage.Of(os.Getpid()); err != nil {
			t.Fatal(err)
		}
	}
	if cores := after.Since(before); cores <= 0 || cores > 64 {
		t.Errorf("uses %v cores", cores)
	}
	if cores := before.Since(after); cores != 0 {
		t.Errorf("uses %v cores in no time", cores)
	}
	if _, err := usage.Of(1 << 30); err == nil {
		t.Error("a process that there is not uses something")
	}
}

func TestMachine(t *testing.T) {
	if usage.Memory() <= 0 || usage.Kernel() == "unknown" || usage.Load() < 0 || usage.Processor() == "" {
		t.Errorf("the machine is %q with %d bytes, kernel %q", usage.Processor(), usage.Memory(), usage.Kernel())
	}
}
