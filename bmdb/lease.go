// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "time"

// lease is the arithmetic of one session's liveness. Everything follows from its length, so that a single setting moves all of it,
// and so that the sum of what a takeover waits for is a matter of arithmetic:
//
//	beat     lease/12  between two beats
//	margin   lease/6   by which the holder stops trusting its session before the database does
//	grace    max(lease/30, offset)  for which the database's clocks may disagree before anyone ends the session
//	poll     lease/10  between two looks of a reaper, and at least as long again in jitter
//	idle     lease/3   after which a transaction that does nothing is ended, by the server and by the library
//
// The holder trusts its session until the time before its last good beat was sent, plus lease, minus margin, on a clock that counts
// suspension. (River's leader election derives its trust in the same way: internal/leadership.)
type lease struct {
	length time.Duration
	offset time.Duration // the greatest difference between two clocks of the database
}

func (l lease) beat() time.Duration   { return l.length / 12 }
func (l lease) margin() time.Duration { return l.length / 6 }
func (l lease) poll() time.Duration   { return l.length / 10 }
func (l lease) idle() time.Duration   { return l.length / 3 }
func (l lease) grace() time.Duration  { return max(l.length/30, l.offset) }

// watch is for how long a reaper must have seen a lease unchanged by its own clock, while the database answered.
func (l lease) watch() time.Duration { return l.length / 2 }

// trusted returns until when the holder may act, given when its last good beat was sent.
func (l lease) trusted(sent boottime) boottime { return sent.add(l.length - l.margin()) }

// forEnd is how long an end may take: an attempt that is cut off, and reading back what became of it.
func (l lease) forEnd() time.Duration { return 2*l.idle() + 5*time.Second }

// takeover is the longest time between a holder's death and the end of its session by a reaper that looks every poll (with as much
// again for jitter), whose transaction waits for a closure of the dead that the server ends after idle.
func (l lease) takeover() time.Duration {
	return l.length + l.grace() + 2*l.poll() + l.idle()
}
