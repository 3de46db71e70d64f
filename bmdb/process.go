// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"fmt"

	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Facts that the library derives from a machine's tags. Tags that users define are facts by their own names.
const (
	FactProvided         = "Provided"         // it exists at a provider
	FactAgentStarted     = "AgentStarted"     // an agent was started on it
	FactAgentHeartbeat   = "AgentHeartbeat"   // its agent was heard of
	FactHardwareReport   = "HardwareReport"   // its agent sent an inventory
	FactInstallDue       = "InstallDue"       // an operating system is wanted whose generation is above the mark
	FactInstallFulfilled = "InstallFulfilled" // an operating system is wanted, and was installed
	// FactAgentUnresponsive comes with time: ten minutes after the last heartbeat, or thirty after the agent's start if there
	// never was one. A process may require it, but not forbid it.
	FactAgentUnresponsive = "AgentUnresponsive"
	// FactViewLost forbids every process: the machine had objects in Kubernetes and has none any more.
	FactViewLost = "ViewLost"
)

// ProcessDefinition says what a kind of work needs of a machine, and what it leaves behind.
type ProcessDefinition struct {
	// Pool is where the process is known; empty for every pool.
	Pool string
	// Name is the process's name in its pool.
	Name string
	// Slot is what excludes works on the same machine from each other. Default: the name.
	Slot string
	// Requires and Forbids are the predicate: facts that a machine must have, and must not have.
	Requires, Forbids []string
	// Sets and Clears are the tags of users that success sets and clears.
	Sets, Clears []string
	// Destructive processes may lose data or interrupt a machine in use.
	Destructive bool
	// Convergent processes make their own predicate false when they succeed.
	Convergent bool

	// indexed processes have ready rows, so that claims find their machines.
	indexed bool
}

// builtinProcesses are the rows that every database has. Those of the original are for a caller's retriever alone.
func builtinProcesses() []ProcessDefinition {
	const access = "access"
	original := func(name model.Process, slot string) ProcessDefinition {
		return ProcessDefinition{Name: string(name), Slot: slot, Requires: []string{}, Forbids: []string{}, Sets: []string{}, Clears: []string{}}
	}
	return []ProcessDefinition{
		{
			Name: string(model.ProcessAgentStart), Slot: access, Convergent: true, indexed: true,
			Requires: []string{FactProvided}, Forbids: []string{FactAgentStarted, FactInstallFulfilled}, Sets: []string{}, Clears: []string{},
		},
		{
			Name: string(model.ProcessAgentRecovery), Slot: access, Destructive: true, Convergent: true, indexed: true,
			Requires: []string{FactAgentStarted, FactAgentUnresponsive}, Forbids: []string{FactInstallFulfilled}, Sets: []string{}, Clears: []string{},
		},
		{
			Name: string(model.ProcessOSInstall), Slot: access, Destructive: true, Convergent: true, indexed: true,
			Requires: []string{FactAgentStarted, FactInstallDue}, Forbids: []string{}, Sets: []string{}, Clears: []string{},
		},
		original(model.ProcessShepherdAccess, access),
		original(model.ProcessShepherdAgentStart, access),
		original(model.ProcessShepherdRecovery, access),
		original(model.ProcessShepherdInstall, access),
		original(model.ProcessUnitTest1, string(model.ProcessUnitTest1)),
		original(model.ProcessUnitTest2, string(model.ProcessUnitTest2)),
	}
}

// BuiltinsDigest is a text that changes when a built-in process does, for those who keep a copy of a migrated database.
func BuiltinsDigest() string { return fmt.Sprintf("%+v", builtinProcesses()) }
