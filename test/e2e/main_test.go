// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package e2e_test holds whole operator processes against a real API server, a real database and, where it matters, real SSH machines:
// they are killed, stopped and handed over, their objects are deleted and restored, their database goes away. What must hold is asked
// of the database in SQL, not of the operators.
package e2e_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/go-logr/logr"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

func TestMain(m *testing.M) {
	ctrllog.SetLogger(logr.Discard()) // what clients in the tests say; operators have logs of their own
	os.Exit(devtest.Main(suite{m}).Run())
}

// suite removes the programs after the tests.
type suite struct{ tests *testing.M }

func (s suite) Run() int {
	code := s.tests.Run()
	if err := errors.Join(programs.Remove(), nextPrograms.Remove()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// programs are the operator and the agent as they are now, built by the first test that asks. They are process-wide on purpose: all
// tests run the same. nextPrograms are one schema version ahead.
var programs, nextPrograms = testbed.Programs{}, testbed.Programs{Tags: "bmdb_next"}
