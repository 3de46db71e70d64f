// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	retainEvery = 10 * time.Minute
	retainPage  = 1000
)

// retain forgets history, audit and ended sessions that are older than they are kept, and clusters that nothing was heard of for an hour.
// Nothing is decided from any of them. Claims and what they did to machines are kept for ever: a key is carried out once.
func (c *Connection) retain(ctx context.Context) error {
	age := c.config.History.Milliseconds()
	for name, sql := range map[string]string{"ForgetHistory": sqlForgetHistory, "ForgetAudit": sqlForgetAudit, "ForgetSessions": sqlForgetSessions} {
		if err := c.deletePages(ctx, name, sql, retainPage, age); err != nil {
			return wrap("forget what is old", err)
		}
	}
	var silent []string
	err := c.read(ctx, "SilentClusters", sqlSilentClusters, nil, func() { silent = nil }, func(row pgx.Rows) error {
		var cluster string
		err := row.Scan(&cluster)
		silent = append(silent, cluster)
		return err
	})
	for _, cluster := range silent {
		if err == nil {
			c.log.InfoContext(ctx, "forgot a cluster that nothing was heard of", "cluster", cluster)
			err = c.UnregisterCluster(ctx, cluster)
		}
	}
	return err
}

// deletePages repeats a deletion that returns a row for each row it deleted, until a page is not full. The statement's parameters are what,
// and the size of a page.
func (c *Connection) deletePages(ctx context.Context, name, sql string, page int, what any) error {
	for {
		n := 0
		err := c.transact(ctx, "delete", func(_ context.Context, tx *Tx) error {
			n = 0
			tx.queueRows(name, sql, []any{what, page}, func(pgx.Rows) error { n++; return nil })
			return nil
		})
		if err != nil || n < page {
			return err
		}
	}
}
