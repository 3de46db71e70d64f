// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"time"
)

// PollInterval is between two looks of those who wait.
const PollInterval = 100 * time.Millisecond

// Eventually waits until check succeeds, and ends the test when it has not after a time.
func (l *Lab) Eventually(within time.Duration, what string, check func(ctx context.Context) error) {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(l.T.Context(), within)
	defer cancel()
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	last := errors.New("nothing was looked at")
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err // what the end of our own time breaks says nothing
		}
		select {
		case <-ctx.Done():
			l.T.Fatalf("%s: not within %s: %v", what, within, last)
		case <-ticker.C:
		}
	}
}

// Always ends the test when check fails within a time.
func (l *Lab) Always(during time.Duration, what string, check func(ctx context.Context) error) {
	l.T.Helper()
	over := time.NewTimer(during)
	defer over.Stop()
	ticker := time.NewTicker(PollInterval)
	defer ticker.Stop()
	for {
		if err := check(l.T.Context()); err != nil {
			l.T.Fatalf("%s: %v", what, err)
		}
		select {
		case <-over.C:
			return
		case <-ticker.C:
		}
	}
}
