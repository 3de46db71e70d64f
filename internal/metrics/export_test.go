// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import "context"

// Read reads once, all that there is.
func (r *Reader) Read(ctx context.Context) {
	r.read(ctx)
	r.readFleet(ctx)
	r.read(ctx)
}
