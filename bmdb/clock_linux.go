// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"time"

	"golang.org/x/sys/unix"
)

// now reads the clock that goes on while the machine is suspended. Go's monotonic clock stands still then, so a worker on a laptop
// lid or in a paused virtual machine would trust a session that is long gone.
func now() boottime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return boottime(time.Since(processStart))
	}
	return boottime(ts.Nano())
}
