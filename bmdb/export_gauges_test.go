// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import "context"

// FleetGaugesByPages is FleetGauges with small pages.
func (c *Connection) FleetGaugesByPages(ctx context.Context, page int64) (FleetGauges, error) {
	return c.fleetGauges(ctx, page, 0)
}
