// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// ListHistoryOf returns the starts and ends of all works on a machine that are still kept, in their order. It needs no session.
func (c *Connection) ListHistoryOf(ctx context.Context, machine uuid.UUID) ([]model.WorkHistory, error) {
	var rows []model.WorkHistory
	err := c.again(ctx, "ListHistoryOf", func() (err error) {
		rows, err = model.New(c.pool).ListHistoryOf(ctx, machine)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list history of machine %s: %w", machine, err)
	}
	return rows, nil
}

// GetSession returns what is known of a session: one row, or none for a session that never was or whose row is no longer kept. It
// needs no session.
func (c *Connection) GetSession(ctx context.Context, session uuid.UUID) ([]model.Session, error) {
	var rows []model.Session
	err := c.again(ctx, "GetSession", func() (err error) {
		rows, err = model.New(c.pool).GetSession(ctx, session)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("get session %s: %w", session, err)
	}
	return rows, nil
}
