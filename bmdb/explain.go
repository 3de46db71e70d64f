// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "time"

// Explanation says why a process is not started on a machine, or that it could be.
type Explanation struct {
	// Reason is Ready, Active, NoSuchMachine, ProcessNotAvailable, NotNeeded, Held, LockedBy, BackedOff or AtLimit: the first gate that a start does not pass.
	Reason string
	// Message is a line that a person can act on.
	Message string
	// Until is when it passes by itself, by the database's clock; zero: not known.
	Until time.Time
	// Predicate is the first fact that fails, as in "requires AgentStarted"; empty if none does.
	Predicate string
}
