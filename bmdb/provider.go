// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// ProviderLimits is what a ProviderConfig says of its provider's limits. Of several views' limits the smaller counts.
type ProviderLimits struct {
	Pool, Provider string
	// MaxMachines is how many machines may be recorded for the provider; nil: any number.
	MaxMachines *int64
	// Parallelism is on how many of them work may go on at once; nil: any number.
	Parallelism *int64
}

// ProviderState is a provider as the database knows it.
type ProviderState struct {
	// Machines is how many machines are recorded for it.
	Machines int64
	// Working is how many works go on on its machines.
	Working int64
	// MaxMachines and Parallelism are the limits in effect; nil: none.
	MaxMachines, Parallelism *int64
	// Manages tells whether the view asked for manages; if not, Manager is the cluster of the one that does, or empty.
	Manages bool
	Manager string
	// Settling tells that a limit is being introduced: nothing is started until the works that run have been counted.
	Settling bool
	Rev      int64
}
