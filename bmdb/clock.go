// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "time"

// boottime is a reading of the local clock that never jumps and counts suspension, in nanoseconds since some moment. Only
// differences mean anything, and only inside one process.
type boottime int64

func (b boottime) add(d time.Duration) boottime { return b + boottime(d) }
func (b boottime) sub(o boottime) time.Duration { return time.Duration(b - o) }

// processStart is the zero of the clock where the system has none that counts suspension.
var processStart = time.Now()
