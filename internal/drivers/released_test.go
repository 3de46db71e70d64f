// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package drivers_test

import (
	"os/exec"
	"strings"
	"testing"
)

// What is released has no witness, and what the fault suite builds has: of all programs, the operator alone.
func TestReleasedProgramsHaveNoWitness(t *testing.T) {
	t.Parallel()
	const witness = "/internal/provider/witnessed"
	for tags, want := range map[string]bool{"": false, "bmdb_next": false, "bmdb_witness": true} {
		out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-tags", tags, "../../cmd/...").Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(out), witness+"\n"); got != want {
			t.Errorf("with tags %q the programs contain the witness: %v", tags, got)
		}
	}
}
