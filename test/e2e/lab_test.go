// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// lab is a testbed with what several of these tests need beyond it.
type lab struct{ *testbed.Lab }

// newLab makes a lab of the operator as it is now, unless the options have another.
func newLab(t *testing.T, options testbed.Options) *lab {
	t.Helper()
	if options.Programs == nil {
		options.Programs = &programs
	}
	return &lab{testbed.New(t, options)}
}

// in is the lab as a subtest uses it. What the subtest starts ends with it.
func (l *lab) in(t *testing.T) *lab { return &lab{l.In(t)} }

func key(o client.Object) client.ObjectKey { return client.ObjectKeyFromObject(o) }
