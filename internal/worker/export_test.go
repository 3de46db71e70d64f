// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import "context"

// ServeOwner is Serve with an owner that a test has a hand in.
func (e *Engine) ServeOwner(ctx context.Context, owner Owner) { e.serve(ctx, owner) }
