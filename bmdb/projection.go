// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

// Kinds of what a cluster shows.
const (
	KindMachine  = "machine"  // ID is the machine's ID
	KindClaim    = "claim"    // ID is the key
	KindProvider = "provider" // ID is the provider's name
)

// Pending is something that a cluster has still to show.
type Pending struct {
	// Kind is one of the Kind constants.
	Kind string
	Pool string
	ID   string
	// Rev is the revision that is to be shown. Acknowledge the one that was.
	Rev int64
}
