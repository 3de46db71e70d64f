// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire stands between a program and its PostgreSQL server and understands what they say: which statements a round trip carries, in
// which direction it is, and what the server answered. A hook decides, at every one of these points, what becomes of it. The program
// under test knows nothing of this.
//
// A round trip is all that the program sends up to a Sync, as it is what it cannot take back once it is sent. There are three kinds of
// points: before a round trip reaches the server; between two statements of it, where the server has the first and never gets the
// second; and after the server carried it out, before the program hears of it. A program that dies anywhere between two of these points
// has sent the same as one that dies at one of them.
package wire

import (
	"fmt"
	"strings"
	"time"
)

// Side says where a round trip is.
type Side int

// The sides, in the order in which a round trip passes them.
const (
	// Before: nothing of it has reached the server.
	Before Side = iota
	// Torn: the server has the first statements, and will not get the others.
	Torn
	// After: the server has carried it out, and the program has not heard of it.
	After
)

func (s Side) String() string { return [...]string{"before", "torn", "after"}[s] }

// Trip is one round trip. It is not changed once a hook has seen it.
type Trip struct {
	// Owner is what Options.Owner returned when the connection was made.
	Owner any
	// Application is what the program calls itself: application_name, as it connected.
	Application string
	// Connection counts the connections of a proxy.
	Connection int64
	// Statements are the names of what it carries out, in order. Empty: it only prepares.
	Statements []string
	// Sent and Done are when it went to the server and when the server's last answer came; zero before that.
	Sent, Done time.Time
	// State is the server's, after: I idle, T in a transaction, E in one that failed. Zero before.
	State byte
	// Failed is the SQLSTATE of the first error that the server answered; empty for none.
	Failed string
}

// Name is the same for every round trip with the same statements.
func (t *Trip) Name() string { return strings.Join(t.Statements, "+") }

// Has tells whether a statement is part of it.
func (t *Trip) Has(statement string) bool {
	for _, s := range t.Statements {
		if s == statement {
			return true
		}
	}
	return false
}

// Point is a point of a round trip at which something may happen to it.
type Point struct {
	// Trip is its name.
	Trip string
	Side Side
	// Index, of Torn, is how many statements the server gets; 0 for other sides.
	Index int
}

func (p Point) String() string {
	if p.Side == Torn {
		return fmt.Sprintf("%s: torn after %d", p.Trip, p.Index)
	}
	return fmt.Sprintf("%s: %s", p.Trip, p.Side)
}

// Verdict is what becomes of a round trip. The zero value lets it pass.
type Verdict struct {
	// Delay is for how long it is held up first.
	Delay time.Duration
	// Cut ends the connection at this point. Before: nothing is sent. After: the answer is lost.
	Cut bool
	// Tear, at Before and with Cut, sends the first statements before it cuts, as many as it says. 0: none.
	Tear int
	// Hole swallows this and everything after it on the connection, in both directions, without ending it.
	Hole bool
	// Fail, at Before, lets a statement fail with an SQLSTATE instead of being carried out. Empty: none.
	Fail string
	// FailAt is the index of that statement.
	FailAt int
	// Unknown, at After, replaces the answer of a COMMIT that succeeded by an error with this SQLSTATE. Empty: none.
	Unknown string
	// Torn, if not nil, is called when a torn round trip has been sent as far as it will be, and the server has answered that.
	Torn func()
}

// Hook decides what becomes of a round trip. It is called at Before and at After, from the goroutines of all connections at once, and holds up the
// round trip for as long as it takes.
type Hook func(t *Trip, side Side) Verdict
