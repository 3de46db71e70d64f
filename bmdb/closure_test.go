// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"io"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// What a closure fails with is its caller's: only a connection that really broke is a reason to try again.
func TestErrorOfClosureIsReturnedAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, bmdbtest.New(t))
	for _, cause := range []error{io.EOF, context.Canceled, context.DeadlineExceeded, errors.New("no")} {
		attempts := 0
		err := s.Transact(t.Context(), func(q *model.Queries) error {
			attempts++
			if _, err := q.CountMachines(t.Context()); err != nil {
				return err
			}
			return cause
		})
		if !errors.Is(err, cause) || attempts != 1 {
			t.Errorf("a closure that fails with %v: %v after %d attempts", cause, err, attempts)
		}
	}
}
