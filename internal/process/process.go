// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package process holds the processes that this version of the operator carries out: the side effects of each, and what is committed
// when they succeeded. Which machines need a process is not decided here but in the database, by the process's predicate.
package process

import (
	"context"
	"maps"
	"slices"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// Task is one performance of a process on one machine.
type Task struct {
	// Machine is what is worked on.
	Machine provider.Machine
	// Driver reaches it.
	Driver provider.Driver
	// Steps asks before each side effect whether the work still is ours.
	Steps provider.Steps
}

// Process is a kind of work. Implementations are safe for concurrent use.
type Process interface {
	// Perform does the side effects and returns what is to be committed. It ends promptly when ctx does. It may be called again for
	// the same machine after any failure, also after one that happened when all side effects were done.
	Perform(ctx context.Context, t Task) (bmdb.Outcome, error)
}

// Set is the processes that are carried out, by name. It is a value that the program makes and passes on; it is not changed.
type Set map[string]Process

// Builtin returns the processes of this version.
func Builtin() Set { return Set{string(model.ProcessAgentStart): AgentStart{}} }

// Names returns the names in order.
func (s Set) Names() []string { return slices.Sorted(maps.Keys(s)) }

// Has tells whether a process is carried out.
func (s Set) Has(name string) bool { return s[name] != nil }
