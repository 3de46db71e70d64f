// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package bmdb

import "time"

// now is Go's monotonic clock, which on this system may stand still while the machine is suspended.
func now() boottime { return boottime(time.Since(processStart)) }
