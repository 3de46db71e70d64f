// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"time"

	"github.com/google/uuid"
)

// Hold keeps everybody from starting work on machines. It is known by its name in its pool.
type Hold struct {
	Pool, Name string
	// Reason and Owner are shown to those who wait.
	Reason, Owner string
	// Until is when it ends by itself, by the database's clock. nil: never.
	Until *time.Time
	// Actor and Cluster say in the audit log who placed it.
	Actor, Cluster string
}

// HoldState is what a hold does at the moment.
type HoldState struct {
	// Machines are the machines that it holds, by ascending ID.
	Machines []uuid.UUID
	// Working is on how many of them work still runs. 0: it is safe to touch them.
	Working int64
}
