// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// Kinds of what a cluster shows.
const (
	KindMachine  = "machine"  // ID is the machine's ID
	KindClaim    = "claim"    // ID is the key
	KindProvider = "provider" // ID is the provider's name
)

// Pending is something that a cluster has still to show.
type Pending struct {
	// Kind is one of the Kind constants.
	Kind string
	Pool string
	ID   string
	// Rev is the revision that is to be shown. Acknowledge the one that was.
	Rev int64
}

// ErrNoSuchCluster is returned to a cluster that is not registered, or was forgotten because nothing was heard of it for an hour. Register it,
// then list everything that it shows, and go on.
var ErrNoSuchCluster = errors.New("cluster is not registered")

const (
	spreadPage      = 500
	claimsSpreadAt  = time.Second      // how often changes of a claim that goes on are shown
	hearEvery       = 30 * time.Second // how often a cluster that asks is noted as there
	projectionsPage = 1000
	// firstMachineText is before every machine.
	firstMachineText = "00000000-0000-0000-0000-000000000000"
)

// RegisterCluster records that a cluster shows machines, claims and providers: from now on, changes of those that it has views of are kept for
// it. Register first and list then, so that nothing falls between. It is idempotent.
func (c *Connection) RegisterCluster(ctx context.Context, cluster string) error {
	err := c.transact(ctx, "register cluster", func(_ context.Context, tx *Tx) error {
		tx.queue("RegisterCluster", sqlRegisterCluster, cluster)
		return nil
	})
	return wrap("register cluster "+cluster, err)
}

// UnregisterCluster forgets a cluster and what it has still to show. Its views stay.
func (c *Connection) UnregisterCluster(ctx context.Context, cluster string) error {
	err := c.transact(ctx, "unregister cluster", func(_ context.Context, tx *Tx) error {
		tx.queue("UnregisterCluster", sqlUnregisterCluster, cluster)
		return nil
	})
	if err == nil {
		err = c.deletePages(ctx, "DeleteProjections", sqlDeleteProjections, projectionsPage, cluster)
	}
	return wrap("unregister cluster "+cluster, err)
}

// pendingCursors are where each cluster's reading goes on, so that what cannot be shown does not keep the rest from being seen.
type pendingCursors struct {
	mu    sync.Mutex
	after map[string]Pending
	heard map[string]boottime // when each cluster was last heard of, by this program

	seen   chan struct{}
	looked atomic.Int64 // boottime of the last look of a session that succeeded
}

// ProjectionsSeen is for a program that waits for what PendingProjections returns for Config.Cluster. Sessions of this connection look for it about once
// a second, with all else that they look for, if they were not started WithoutMaintenance; seen gets a value when one has found something, and
// holds one. looking tells whether they do: while there is no such session, or the database does not answer, call PendingProjections once a second.
// In any case call it every half minute: that also tells that the cluster is there.
func (c *Connection) ProjectionsSeen() (seen <-chan struct{}, looking bool) {
	looked := boottime(c.pending.looked.Load())
	return c.pending.seen, looked != 0 && now().sub(looked) < tendLate
}

// PendingProjections reads at most limit of what a cluster has still to show. What is not acknowledged is returned again, after all else had its
// turn. ErrNoSuchCluster: register it, and list everything. It needs no session.
func (c *Connection) PendingProjections(ctx context.Context, cluster string, limit int) ([]Pending, error) {
	c.pending.mu.Lock()
	defer c.pending.mu.Unlock()
	if c.pending.after == nil {
		c.pending.after, c.pending.heard = map[string]Pending{}, map[string]boottime{}
	}
	if err := c.heardOf(ctx, cluster); err != nil {
		return nil, fmt.Errorf("read what cluster %s has to show: %w", cluster, err)
	}
	from := c.pending.after[cluster]
	list, err := c.readPending(ctx, sqlPending, cluster, from, limit)
	if err == nil && len(list) < limit && from != (Pending{}) {
		var rest []Pending
		rest, err = c.readPending(ctx, sqlPendingUpTo, cluster, from, limit-len(list))
		list = append(list, rest...)
	}
	if err != nil {
		return nil, fmt.Errorf("read what cluster %s has to show: %w", cluster, err)
	}
	delete(c.pending.after, cluster)
	if len(list) == limit && limit > 0 {
		c.pending.after[cluster] = list[limit-1]
	}
	return list, nil
}

// heardOf notes, about once a minute, that a cluster is there. It is called under the cursors' mutex.
func (c *Connection) heardOf(ctx context.Context, cluster string) error {
	if at, ok := c.pending.heard[cluster]; ok && now().sub(at) < hearEvery {
		return nil
	}
	delete(c.pending.heard, cluster)
	known := false
	err := c.read(ctx, "SeenCluster", sqlSeenCluster, []any{cluster}, func() { known = false }, func(pgx.Rows) error {
		known = true
		return nil
	})
	switch {
	case err != nil:
		return err
	case !known:
		return ErrNoSuchCluster
	}
	c.pending.heard[cluster] = now()
	return nil
}

func (c *Connection) readPending(ctx context.Context, sql, cluster string, from Pending, limit int) (list []Pending, err error) {
	err = c.read(ctx, "Pending", sql, []any{cluster, from.Kind, from.Pool, from.ID, limit}, func() { list = nil }, func(row pgx.Rows) error {
		p, err := pgx.RowToStructByPos[Pending](row)
		list = append(list, p)
		return err
	})
	return list, err
}

// AckProjections records what a cluster has shown, each with the revision that it showed. What has changed since stays pending.
func (c *Connection) AckProjections(ctx context.Context, cluster string, shown []Pending) error {
	if len(shown) == 0 {
		return nil
	}
	n := len(shown)
	kinds, pools, ids, revs := make([]string, n), make([]string, n), make([]string, n), make([]int64, n)
	for i, p := range shown {
		kinds[i], pools[i], ids[i], revs[i] = p.Kind, p.Pool, p.ID, p.Rev
	}
	// One statement, which does no more when it is sent again.
	err := c.read(ctx, "Ack", sqlAck, []any{cluster, kinds, pools, ids, revs}, func() {}, func(pgx.Rows) error { return nil })
	return wrap("acknowledge what cluster "+cluster+" has shown", err)
}

// Spread copies the revisions of at most limit machines, claims and providers each that have changed to the clusters that show them, and returns
// how many that were. Sessions do it all the time.
func (c *Connection) Spread(ctx context.Context, limit int) (int, error) {
	s := spreader{conn: c, from: firstMachineText}
	return s.spread(ctx, limit, true)
}

// spreader is the chore of spreading.
type spreader struct {
	conn   *Connection
	from   string   // the last machine of the last page
	claims boottime // when claims that go on were last spread
}

// dirtyRows are what has changed, as the arrays of a statement.
type dirtyRows struct {
	pools, ids []string
	revs       []int64
}

func (s *spreader) turn(ctx context.Context) error {
	due := now().sub(s.claims) >= claimsSpreadAt
	if due {
		s.claims = now()
	}
	for {
		n, err := s.spread(ctx, spreadPage, due)
		if err != nil || n < spreadPage {
			return err
		}
	}
}

func (s *spreader) spread(ctx context.Context, limit int, everyClaim bool) (int, error) {
	machines, err := s.one(ctx, sqlDirtyMachines, sqlSpreadMachines, sqlMachinesSpread, s.from, limit)
	if err != nil {
		return 0, err
	}
	s.from = firstMachineText
	if n := len(machines.ids); n == limit && n > 0 {
		s.from = machines.ids[n-1]
	}
	claims, err := s.one(ctx, sqlDirtyClaims, sqlSpreadClaims, sqlClaimsSpread, everyClaim, limit)
	if err != nil {
		return 0, err
	}
	providers, err := s.one(ctx, sqlDirtyProviders, sqlSpreadProviders, sqlProvidersSpread, limit)
	if err != nil {
		return 0, err
	}
	return len(machines.ids) + len(claims.ids) + len(providers.ids), nil
}

// one spreads one kind. What changes between the reading and the marking stays dirty.
func (s *spreader) one(ctx context.Context, read, spread, mark string, args ...any) (dirtyRows, error) {
	var d dirtyRows
	err := s.conn.read(ctx, "Dirty", read, args, func() { d = dirtyRows{} }, func(row pgx.Rows) error {
		var pool, id string
		var rev int64
		err := row.Scan(&pool, &id, &rev)
		d.pools, d.ids, d.revs = append(d.pools, pool), append(d.ids, id), append(d.revs, rev)
		return err
	})
	if err == nil && len(d.ids) > 0 {
		err = s.conn.transact(ctx, "spread", func(_ context.Context, tx *Tx) error {
			tx.queue("Spread", spread, d.pools, d.ids, d.revs)
			tx.queue("MarkSpread", mark, d.pools, d.ids, d.revs)
			return nil
		})
	}
	return d, wrap("spread changes", err)
}
