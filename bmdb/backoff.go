// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"math"
	"math/rand/v2"
	"time"
)

// Backoff says for how long a process leaves a machine alone after a failure. The period grows from Initial by Exponent with each
// failure that follows directly on another, and begins again after a success. Periods are whole seconds, rounded up.
type Backoff struct {
	// Initial is the first period, and every period where Exponent is not above 1. Less than a second counts as one second.
	Initial time.Duration
	// Maximum bounds the period. Less than Initial counts as Initial.
	Maximum time.Duration
	// Exponent is the factor between two periods. 0 to 1 means that they are all the same.
	Exponent float64
	// Jitter draws the time that the machine is really left alone from one second up to the period, so that machines that failed
	// together do not come back together. The period that is recorded is not drawn.
	Jitter bool
}

// next returns the period that follows last (the period recorded in the database; 0: none), in seconds. It may be called on nil,
// which means to go on with the last period, or one second.
func (b *Backoff) next(last int64) int64 {
	if b == nil {
		return max(last, 1)
	}
	initial := max(seconds(b.Initial), 1)
	maximum := max(seconds(b.Maximum), initial)
	if b.Exponent <= 1 || last <= 0 {
		return initial
	}
	if n := math.Ceil(float64(last) * b.Exponent); n < float64(maximum) {
		return int64(n)
	}
	return maximum
}

// delay returns for how long the machine is left alone in a period, in seconds.
func (b *Backoff) delay(period int64) int64 {
	if b == nil || !b.Jitter || period <= 1 {
		return period
	}
	return 1 + rand.Int64N(period)
}

// seconds rounds up, so that no backoff is shorter than it was asked for.
func seconds(d time.Duration) int64 {
	n := int64(d / time.Second)
	if d%time.Second > 0 {
		n++
	}
	return n
}
