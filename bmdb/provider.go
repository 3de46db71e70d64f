// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// ProviderLimits is what a ProviderConfig says of its provider's limits. Of several views' limits the smaller counts.
type ProviderLimits struct {
	Pool, Provider string
	// MaxMachines is how many machines may be recorded for the provider; nil: any number.
	MaxMachines *int64
	// Parallelism is on how many of them work may go on at once; nil: any number.
	Parallelism *int64
}

// ProviderState is a provider as the database knows it.
type ProviderState struct {
	// Machines is how many machines are recorded for it.
	Machines int64
	// Working is how many works go on on its machines.
	Working int64
	// MaxMachines and Parallelism are the limits in effect; nil: none.
	MaxMachines, Parallelism *int64
	// Manages tells whether the view asked for manages; if not, Manager is the cluster of the one that does, or empty.
	Manages bool
	Manager string
	// Settling tells that a limit is being introduced: nothing is started until the works that run have been counted.
	Settling bool
	Rev      int64
	// Standing is the revision as objects show it.
	Standing Standing
}

// longestStatement bounds how long a statement of any program may run: the statement timeout of its connections, and time to notice.
const longestStatement = 12 * time.Second

func limitID(pool, provider string) string { return "provider/" + pool + "/" + provider }

// providerView is a view of a provider, as its row has it.
type providerView struct {
	Cluster, UID             string
	Manages                  bool
	MaxMachines, Parallelism *int64
	Origin                   string
}

// AttachProvider records what a view says of a provider's limits; of several views the smaller counts. It is idempotent and writes only
// what differs. The first view manages; the role passes to the next that calls when it is detached.
//
// Limits are exact at every start. A lowered parallelism lets the work that goes on end. One that is introduced while work may go on on
// the provider's machines is settled first: for some time nothing is started on them, and ProviderSnapshot says so.
func (c *Connection) AttachProvider(ctx context.Context, v View, l ProviderLimits) error {
	fail := func(err error) error { return fmt.Errorf("attach provider %s/%s: %w", l.Pool, l.Provider, err) }
	if l.Pool == "" || l.Provider == "" {
		return fail(errors.New("pool and provider must not be empty"))
	}
	if l.MaxMachines != nil && *l.MaxMachines < 0 || l.Parallelism != nil && *l.Parallelism < 0 {
		return fail(errors.New("limits must not be negative"))
	}
	views, err := c.providerViews(ctx, l.Pool, l.Provider)
	if err != nil {
		return fail(err)
	}
	wanted := providerView{Cluster: v.Cluster, UID: v.UID, Manages: true, MaxMachines: l.MaxMachines, Parallelism: l.Parallelism, Origin: c.config.Origin}
	if _, differs := wanted.among(views); !differs {
		return nil
	}
	err = c.changeProvider(ctx, l.Pool, l.Provider, func(_ context.Context, tx *Tx, views []providerView) ([]providerView, error) {
		next, _ := wanted.among(views)
		mine := next[slices.IndexFunc(next, func(o providerView) bool { return o.Cluster == v.Cluster })]
		tx.queue("SetProviderView", sqlSetProviderView, l.Pool, l.Provider, mine.Cluster, mine.UID, mine.Manages, mine.MaxMachines, mine.Parallelism, mine.Origin)
		return next, nil
	})
	return wrap("attach provider "+l.Pool+"/"+l.Provider, err)
}

// among returns the views with this one as it should be, and whether that is a difference.
func (w providerView) among(views []providerView) (next []providerView, differs bool) {
	same := func(a, b *int64) bool { return (a == nil) == (b == nil) && (a == nil || *a == *b) }
	found := false
	for _, v := range views {
		if v.Cluster != w.Cluster {
			w.Manages = w.Manages && !v.Manages
		}
	}
	for _, v := range views {
		if v.Cluster == w.Cluster {
			found = true
			differs = v.UID != w.UID || v.Manages != w.Manages || !same(v.MaxMachines, w.MaxMachines) || !same(v.Parallelism, w.Parallelism)
			v = w
		}
		next = append(next, v)
	}
	if !found {
		return append(next, w), true
	}
	return next, differs
}

// DetachProvider takes a view from a provider; a view of another UID or another Config.Origin stays. What its limits were does not count any more. It is idempotent.
func (c *Connection) DetachProvider(ctx context.Context, v View, pool, provider string) error {
	views, err := c.providerViews(ctx, pool, provider)
	origin := c.config.Origin
	mine := func(o providerView) bool {
		return o.Cluster == v.Cluster && o.UID == v.UID && (origin == "" || o.Origin == "" || o.Origin == origin)
	}
	if err == nil && slices.ContainsFunc(views, mine) {
		err = c.changeProvider(ctx, pool, provider, func(_ context.Context, tx *Tx, views []providerView) ([]providerView, error) {
			tx.queue("DeleteProviderView", sqlDeleteProviderView, pool, provider, v.Cluster, v.UID)
			tx.queue("ForgetProjection", sqlForgetProjection, v.Cluster, KindProvider, pool, provider)
			return slices.DeleteFunc(views, mine), nil
		})
	}
	return wrap("detach provider "+pool+"/"+provider, err)
}

func (c *Connection) providerViews(ctx context.Context, pool, provider string) (views []providerView, err error) {
	err = c.read(ctx, "ProviderViews", sqlProviderViews, []any{pool, provider}, func() { views = nil }, scanProviderViews(&views))
	return views, err
}

func scanProviderViews(views *[]providerView) func(row pgx.Rows) error {
	return func(row pgx.Rows) error {
		v, err := pgx.RowToStructByPos[providerView](row)
		*views = append(*views, v)
		return err
	}
}

// providerChange writes what it changes of a provider's views, and returns them as they are then.
type providerChange func(ctx context.Context, tx *Tx, views []providerView) ([]providerView, error)

// changeProvider changes the views of a provider under its mutex and brings its limits in line.
func (c *Connection) changeProvider(ctx context.Context, pool, provider string, change providerChange) error {
	id := limitID(pool, provider)
	introduced := false
	err := c.transact(ctx, "change provider", func(ctx context.Context, tx *Tx) error {
		var views []providerView
		introduced = false
		tx.queue("LockProvider", sqlLockRegistration, pool, provider)
		tx.queueRows("ProviderViews", sqlProviderViews, []any{pool, provider}, scanProviderViews(&views))
		l := limitState{id: id}
		l.queueLock(tx)
		if err := tx.flush(ctx); err != nil {
			return err
		}
		var maxMachines, parallelism *int64
		next, err := change(ctx, tx, views)
		if err != nil {
			return err
		}
		for _, v := range next {
			maxMachines, parallelism = smaller(maxMachines, v.MaxMachines), smaller(parallelism, v.Parallelism)
		}
		tx.queue("SetMaxMachines", sqlSetMaxMachines, pool, provider, maxMachines)
		switch {
		case parallelism == nil && l.exists:
			tx.queue("OpenSlots", sqlOpenSlots, id, []int64{})
			tx.queue("DeleteLimit", sqlDeleteLimit, id)
		case parallelism == nil:
		case !l.exists:
			introduced = true
			tx.queue("IntroduceLimit", sqlIntroduceLimit, id, *parallelism, c.settle.Milliseconds())
		case l.maximum != *parallelism:
			tx.queue("SetLimit", sqlSetLimit, id, *parallelism)
			if l.maximum = *parallelism; !l.settling {
				return l.arrange(ctx, tx)
			}
		}
		return nil
	})
	if err != nil || !introduced {
		return err
	}
	// Where nothing can be under way there is nothing to wait for. This is another transaction: it has to see everything that the
	// limit was not there for.
	return c.settleLimit(ctx, id, sqlNobodyStarts, pool, provider)
}

func smaller(a, b *int64) *int64 {
	if a == nil || b != nil && *b < *a {
		return b
	}
	return a
}

// settleLimit counts the works that a limit was introduced above, and opens its slots, if the condition is true.
func (c *Connection) settleLimit(ctx context.Context, id, condition string, args ...any) error {
	parts := strings.SplitN(id, "/", 3)
	pool, provider := parts[1], parts[2]
	return c.transact(ctx, "settle limit", func(ctx context.Context, tx *Tx) error {
		settled := false
		var works []uuid.UUID
		l := limitState{id: id}
		l.queueLock(tx)
		tx.queueRows("SettleCondition", condition, args, func(row pgx.Rows) error {
			if condition == sqlSettleDue {
				settled = true
				return nil
			}
			return row.Scan(&settled)
		})
		if err := tx.flush(ctx); err != nil || !settled || !l.settling {
			return err
		}
		if err := l.lockSlots(ctx, tx); err != nil {
			return err
		}
		tx.queueRows("WorksWithoutSlot", sqlWorksWithoutSlot, []any{pool, provider, id}, scanIDs(&works))
		if err := tx.flush(ctx); err != nil {
			return err
		}
		if len(works) > 0 {
			numbers := make([]int64, len(works))
			for i := range numbers {
				numbers[i] = l.next() + int64(i)
			}
			tx.queue("AdoptWorks", sqlAdoptWorks, id, numbers, works)
		}
		tx.queue("LimitSettled", sqlLimitSettled, id)
		return l.arrange(ctx, tx)
	})
}

// arrangeLimits settles limits whose time has come, and opens slots of lowered ones as works end.
func (c *Connection) arrangeLimits(ctx context.Context) error {
	var ids []string
	err := c.read(ctx, "LimitsToArrange", sqlLimitsToArrange, nil, func() { ids = nil }, func(row pgx.Rows) error {
		var id string
		err := row.Scan(&id)
		ids = append(ids, id)
		return err
	})
	for _, id := range ids {
		if err != nil {
			break
		}
		if err = c.settleLimit(ctx, id, sqlSettleDue, id); err != nil {
			break
		}
		err = c.transact(ctx, "arrange limit", func(ctx context.Context, tx *Tx) error {
			l := limitState{id: id}
			l.queueLock(tx)
			if err := tx.flush(ctx); err != nil || !l.exists || l.settling {
				return err
			}
			return l.arrange(ctx, tx)
		})
	}
	return wrap("arrange limits", err)
}

// limitState is a limit under its mutex.
type limitState struct {
	id               string
	exists, settling bool
	maximum          int64
	slots            []limitSlot
}

type limitSlot struct {
	n    int64
	used bool
}

func (l *limitState) queueLock(tx *Tx) {
	l.exists = false
	tx.queueRows("LockLimit", sqlLockLimit, []any{l.id}, func(row pgx.Rows) error {
		l.exists = true
		return row.Scan(&l.maximum, &l.settling)
	})
}

func (l *limitState) lockSlots(ctx context.Context, tx *Tx) error {
	l.slots = nil
	tx.queueRows("LockSlots", sqlLockSlots, []any{l.id}, func(row pgx.Rows) error {
		var s limitSlot
		err := row.Scan(&s.n, &s.used)
		l.slots = append(l.slots, s)
		return err
	})
	return tx.flush(ctx)
}

func (l *limitState) next() int64 {
	if len(l.slots) == 0 {
		return 0
	}
	return l.slots[len(l.slots)-1].n + 1
}

// arrange opens as many slots as may be: the used and the free ones that are open are never more than the maximum, so that no start takes a
// slot that is one too many, now or when one that is used now comes free. Where more are used than that, none is open until enough of
// these works have ended.
func (l *limitState) arrange(ctx context.Context, tx *Tx) error {
	tx.queue("MakeSlots", sqlMakeSlots, l.id, l.maximum)
	if err := l.lockSlots(ctx, tx); err != nil {
		return err
	}
	used := int64(0)
	for _, s := range l.slots {
		if s.used {
			used++
		}
	}
	open := []int64{}
	free := l.maximum - used
	for _, s := range l.slots {
		switch {
		case used > l.maximum:
		case s.used:
			open = append(open, s.n)
		case free > 0:
			open = append(open, s.n)
			free--
		}
	}
	tx.queue("OpenSlots", sqlOpenSlots, l.id, open)
	return nil
}

// ProviderSnapshot reads a provider, as the view of a cluster shows it. A provider that the database does not know has no machines and no
// limits. It needs no session.
func (c *Connection) ProviderSnapshot(ctx context.Context, cluster, pool, provider string) (ProviderState, error) {
	var p ProviderState
	var database uuid.UUID
	var incarnation int64
	err := c.read(ctx, "ProviderSnapshot", sqlProviderSnapshot, []any{pool, provider, limitID(pool, provider)}, func() { p = ProviderState{} }, func(row pgx.Rows) error {
		return row.Scan(&database, &incarnation, &p.Machines, &p.MaxMachines, &p.Parallelism, &p.Settling, &p.Rev, &p.Working, &p.Manager)
	})
	p.Standing = Standing{database, revisionIn(incarnation, p.Rev)}
	p.Manages = p.Manager != "" && p.Manager == cluster
	return p, wrap("read provider "+pool+"/"+provider, err)
}
