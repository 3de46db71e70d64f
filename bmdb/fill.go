// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "context"

const spreadEvery = 250000000

func (c *Connection) fillProcesses(ctx context.Context) error { return nil }
func (c *Connection) spreadAll(ctx context.Context) error     { return nil }
