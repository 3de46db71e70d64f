// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package model holds the queries of the Bare Metal Database that a caller's transactions are made of: one file of SQL for each
// entity in queries/, and the Go that sqlc makes of them. Queries are used inside Session.Transact, Session.Work and Work.Finish,
// which see to locks, fencing, eligibility and revisions; a query that writes a machine's facts names the machine as its first
// parameter, and Mutations lists it.
package model

import (
	"context"

	"github.com/google/uuid"
)

// Process is the name of a kind of work. Processes are rows of the database: any name that was registered is a process.
type Process string

// The processes that every database has. Those of the Shepherd and of unit tests are the original's: they are started by a
// caller's retriever only.
const (
	ProcessAgentStart         Process = "AgentStart"
	ProcessAgentRecovery      Process = "AgentRecovery"
	ProcessOSInstall          Process = "OSInstall"
	ProcessShepherdAccess     Process = "ShepherdAccess"
	ProcessShepherdAgentStart Process = "ShepherdAgentStart"
	ProcessShepherdRecovery   Process = "ShepherdRecovery"
	ProcessShepherdInstall    Process = "ShepherdInstall"
	ProcessUnitTest1          Process = "UnitTest1"
	ProcessUnitTest2          Process = "UnitTest2"
)

// Provider is where a machine comes from. Any name is accepted.
type Provider string

// Providers of the original.
const (
	ProviderNone    Provider = ""
	ProviderEquinix Provider = "Equinix"
	ProviderLumen   Provider = "Lumen"
)

// WorkHistoryEvent is what happened to a work: its start, or one of its five ends.
type WorkHistoryEvent string

// The events. Lost is an end by a reaper or sweep; Released is the end of a work that was still open when its session closed, or
// that was released by hand.
const (
	WorkHistoryEventStarted  WorkHistoryEvent = "Started"
	WorkHistoryEventFinished WorkHistoryEvent = "Finished"
	WorkHistoryEventFailed   WorkHistoryEvent = "Failed"
	WorkHistoryEventCanceled WorkHistoryEvent = "Canceled"
	WorkHistoryEventLost     WorkHistoryEvent = "Lost"
	WorkHistoryEventReleased WorkHistoryEvent = "Released"
)

// MachineOsInstallationResult is how an installation ended.
type MachineOsInstallationResult string

// The results. Only a success raises the machine's mark.
const (
	MachineOsInstallationResultSuccess MachineOsInstallationResult = "Success"
	MachineOsInstallationResultError   MachineOsInstallationResult = "Error"
)

// Machines is what the executor of a Queries knows of the machines that are made through it.
type Machines interface {
	// NewMachine returns the ID for the machine that the transaction's attempt makes next, and its pool. An ID is made once for
	// an operation and not once for an attempt, so that an ambiguous commit cannot make two machines.
	NewMachine() (id uuid.UUID, pool string)
}

// NewMachine makes a machine in the connection's pool. It has no facts yet and nobody works on it. It needs an executor of the
// library: a transaction of a session.
func (q *Queries) NewMachine(ctx context.Context) (Machine, error) {
	id, pool := uuid.New(), ""
	if m, ok := q.db.(Machines); ok {
		id, pool = m.NewMachine()
	}
	if err := q.insertMachine(ctx, id); err != nil {
		return Machine{}, err
	}
	if err := q.insertMachineState(ctx, insertMachineStateParams{MachineID: id, Pool: pool}); err != nil {
		return Machine{}, err
	}
	return q.getMachine(ctx, id)
}

// Mutation says how the recorder finds the machines that a query writes to.
type Mutation struct {
	// New is true for queries that make the machine in $1.
	New bool
	// Lookup is empty for queries whose $1 is the machine. For others it is a query for the machines. LookupArgs are the positions, from
	// 0, of those of the query's parameters that it takes.
	Lookup     string
	LookupArgs []int
}

// Mutations lists every query of this package that writes, by its name.
func Mutations() map[string]Mutation {
	machine := Mutation{}
	return map[string]Mutation{
		"insertMachine":                      {New: true},
		"insertMachineState":                 {New: true},
		"MachineAddProvided":                 machine,
		"MachineSetAgentStarted":             machine,
		"MachineDeleteAgentStarted":          machine,
		"MachineSetAgentHeartbeat":           machine,
		"MachineDeleteAgentHeartbeat":        machine,
		"MachineSetHardwareReport":           machine,
		"MachineSetOSInstallationRequest":    machine,
		"MachineDeleteOSInstallationRequest": machine,
		"MachineSetOSInstallationReport":     machine,
		"MachineSetTag":                      machine,
		"MachineDeleteTag":                   machine,
		"MachineUpdateProviderStatus":        {Lookup: machinesOfProviderID, LookupArgs: []int{4, 5}},
	}
}

// machinesOfProviderID finds the machines of MachineUpdateProviderStatus, by its last two parameters.
const machinesOfProviderID = "SELECT machine_id FROM machine_provided WHERE provider_id = $1 AND provider = $2"
