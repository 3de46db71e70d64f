// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if err := postgres.CloseShared(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "close the test server:", err)
		code = 1
	}
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "goroutines are left over:", err)
		code = 1
	}
	os.Exit(code)
}
