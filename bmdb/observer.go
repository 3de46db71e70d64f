// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "time"

// Observer is told what happens in the library, for metrics. Its methods are called from many goroutines, must not block, and must
// not call back into the library.
type Observer interface {
	// SessionStarted and SessionEnded bracket the life of a session of this process. reason is closed, expired or ended.
	SessionStarted()
	SessionEnded(reason string)
	// Beat follows each attempt to keep a session alive.
	Beat(ok bool, took time.Duration)
	// WorkStarted and WorkEnded bracket each work of this process. event is one of the Event constants.
	WorkStarted(process string)
	WorkEnded(process, event string, took time.Duration)
	// WorkTakenOver follows the end of a dead session's work by this process's reaper.
	WorkTakenOver(process string)
	// TransactionRetried follows each attempt of a transaction that failed and is tried again. code is an SQLSTATE, or a word.
	TransactionRetried(operation, code string)
}

// TransactionObserver is an Observer that is also told how long transactions take. It is one of its own so that those who observe already need not
// change.
type TransactionObserver interface {
	Observer
	// TransactionEnded follows each transaction, with all of its attempts and the waiting in between. operation is what it was for: one of a few
	// words. committed is false where it failed, or nobody knows.
	TransactionEnded(operation string, committed bool, took time.Duration)
}

// nobody is the Observer that does not care.
type nobody struct{}

func (nobody) SessionStarted()                           {}
func (nobody) SessionEnded(string)                       {}
func (nobody) Beat(bool, time.Duration)                  {}
func (nobody) WorkStarted(string)                        {}
func (nobody) WorkEnded(string, string, time.Duration)   {}
func (nobody) WorkTakenOver(string)                      {}
func (nobody) TransactionRetried(operation, code string) {}

// transactionEnded tells the observer, if it wants to know.
func (c *Connection) transactionEnded(operation string, committed bool, began boottime) {
	if o, ok := c.observer.(TransactionObserver); ok {
		o.TransactionEnded(operation, committed, now().sub(began))
	}
}
