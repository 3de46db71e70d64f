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

// GiveUp says which views end because what they are views of is gone for good, by a person's decision.
type GiveUp struct {
	// Cluster is whose views end.
	Cluster string
	// Pools are those in which they end. Empty: all.
	Pools []string
	// Origin restricts it to views of objects that were in this API server (Config.Origin), which is not the cluster's any more; then the cluster
	// may live. Empty: any, and the cluster must have no live session.
	Origin string
	// Actor and Cause are written to the audit log.
	Actor, Cause string
}

// GivenUp is how many views were ended.
type GivenUp struct{ Machines, Claims, Providers int }

// ClusterViews counts views that a cluster has of one kind, in one pool, of objects in one API server.
type ClusterViews struct {
	// Kind is one of the Kind constants.
	Kind, Pool string
	// Origin is empty where it is not known.
	Origin string
	// Views is how many there are, Manages how many of them manage.
	Views, Manages int64
	// Last is how many are of something that has no other view: without them machines are left alone, claims are cancelled, limits end.
	Last int64
	// Suspends is how many suspend a claim that has another view, which may go on without them.
	Suspends int64
}

// ClusterSession is a session of a program of a cluster.
type ClusterSession struct {
	Session uuid.UUID
	// Program is its Config.RuntimeInfo, Origin its Config.Origin; both may be empty.
	Program, Origin string
	// Until is when it can be taken for dead, if it gives no sign of life until then.
	Until time.Time
}

// ClusterLivesError is returned by GiveUpViews for a cluster that has live sessions. Nothing more was ended. End its programs, or wait.
type ClusterLivesError struct {
	Cluster, Origin string
	Sessions        []ClusterSession
}

func (e *ClusterLivesError) Error() string {
	var list []string
	unknown := false
	for _, s := range e.Sessions {
		list = append(list, fmt.Sprintf("%s (session %s, at least until %s)", s.Program, s.Session, s.Until.UTC().Format(time.RFC3339)))
		unknown = unknown || s.Origin == ""
	}
	sessions := strings.Join(list, ", ")
	switch {
	case e.Origin == "":
		return fmt.Sprintf("cluster %s is not gone, it has live sessions: %s", e.Cluster, sessions)
	case unknown:
		return fmt.Sprintf("cluster %s has live sessions that may be at API server %s, because they do not say at which they are: %s", e.Cluster, e.Origin, sessions)
	default:
		return fmt.Sprintf("API server %s is the one that cluster %s has, with live sessions there: %s", e.Origin, e.Cluster, sessions)
	}
}

// ErrInDoubt is returned while something speaks against the database (Alarms): what is in it is not to be acted upon.
var ErrInDoubt = errors.New("something speaks against the database: see bmdb-operator acknowledge-database, which can also withdraw what a cluster that is gone has said")

const (
	giveUpPage = 500 // views that are listed at once
	// giveUpGroup is how many machines are locked at once: few enough that work on them hardly waits.
	giveUpGroup = 50
)

// CountViews counts the views of a cluster in some pools, none for all: what GiveUpViews would end. It needs no session.
func (c *Connection) CountViews(ctx context.Context, cluster string, pools []string) (counts []ClusterViews, err error) {
	if len(pools) == 0 {
		pools = nil // NULL in statements
	}
	for _, k := range []struct{ kind, sql string }{{KindMachine, sqlCountMachineViews}, {KindClaim, sqlCountClaimViews}, {KindProvider, sqlCountProviderViews}} {
		var some []ClusterViews
		err := c.read(ctx, "CountViews", k.sql, []any{cluster, pools}, func() { some = nil }, func(row pgx.Rows) error {
			v := ClusterViews{Kind: k.kind}
			err := row.Scan(&v.Origin, &v.Pool, &v.Views, &v.Manages, &v.Last, &v.Suspends)
			some = append(some, v)
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("count views of cluster %s: %w", cluster, err)
		}
		counts = append(counts, some...)
	}
	return counts, nil
}

// GiveUpViews ends views of a cluster, or of a former API server of it, that is gone for good, as if their objects had been deleted: what they said does
// not count any more, managing roles pass to views that are left, machines without any are left alone, and works of claims without any are cancelled. What was
// done stays, and a cluster that comes back attaches its objects as new. Each view is audited. It works in small transactions and
// tells progress, which may be nil, of what has been ended so far; interrupted, it goes on when it is called again. It needs no session.
//
// *ClusterLivesError: the cluster is not gone. ErrInDoubt: the database may not be the right one.
func (c *Connection) GiveUpViews(ctx context.Context, g GiveUp, progress func(GivenUp)) (done GivenUp, err error) {
	if g.Cluster == "" {
		return done, errors.New("give up views: a cluster is needed")
	}
	if len(g.Pools) == 0 {
		g.Pools = nil // NULL in statements
	}
	if progress == nil {
		progress = func(GivenUp) {}
	}
	n := &giveUp{GiveUp: g, conn: c}
	if err = n.refuse(ctx); err == nil {
		err = n.unregister(ctx)
	}
	// Limits last: nothing of what the cluster alone wanted starts any more when they end.
	for _, k := range []struct {
		kind  string
		group int
		end   func(ctx context.Context, views []ViewRow) (int, error)
		count *int
	}{{KindMachine, giveUpGroup, n.machines, &done.Machines}, {KindClaim, 1, n.claim, &done.Claims}, {KindProvider, 1, n.provider, &done.Providers}} {
		found := giveUpPage
		for after := (ViewRow{}); err == nil && found == giveUpPage; {
			var page []ViewRow
			if page, err = c.viewsOf(ctx, g.Cluster, k.kind, g.Pools, g.Origin, after, giveUpPage); err != nil {
				break
			}
			found = len(page)
			for group := range slices.Chunk(page, k.group) {
				var ended int
				if ended, err = k.end(ctx, group); err != nil {
					break
				}
				*k.count += ended
				after = group[len(group)-1]
			}
			if found > 0 && err == nil {
				progress(done)
			}
		}
	}
	if err == nil {
		// Again: a program that came back meanwhile looks at everything anew.
		err = n.unregister(ctx)
	}
	if errors.Is(err, errSessionsAppeared) {
		err = errors.Join(n.refuse(ctx), err)
	}
	return done, wrap("give up views of cluster "+g.Cluster, err)
}

// giveUp is one call of GiveUpViews.
type giveUp struct {
	GiveUp
	conn *Connection
}

// refuse says why nothing may be given up. Sessions that died and that nobody was there to end it ends itself.
func (g *giveUp) refuse(ctx context.Context) error {
	type found struct {
		ClusterSession
		deadline time.Time
		over     bool
	}
	var sessions []found
	err := g.conn.read(ctx, "SessionsAt", sqlSessionsAt, []any{g.Cluster, g.Origin, 2 * g.conn.lease.grace().Milliseconds()}, func() { sessions = nil }, func(row pgx.Rows) error {
		var s found
		err := row.Scan(&s.Session, &s.Program, &s.Origin, &s.deadline, &s.Until, &s.over)
		sessions = append(sessions, s)
		return err
	})
	if err != nil {
		return err
	}
	m := newMaintenance(g.conn)
	lives := &ClusterLivesError{Cluster: g.Cluster, Origin: g.Origin}
	for _, s := range sessions {
		if !s.over {
			lives.Sessions = append(lives.Sessions, s.ClusterSession)
		} else if err := m.kill(ctx, s.Session, s.deadline); err != nil {
			return err
		}
	}
	if len(lives.Sessions) > 0 {
		return lives
	}
	return g.conn.transact(ctx, "may give up", g.hindered)
}

// hindered says why nothing may be given up now, as part of a transaction. It sends what is queued.
func (g *giveUp) hindered(ctx context.Context, tx *Tx) error {
	alive, doubt := false, false
	tx.queueRows("Hindrances", sqlHindrances, []any{g.Cluster, g.Origin, g.Pools}, func(row pgx.Rows) error { return row.Scan(&alive, &doubt) })
	if err := tx.flush(ctx); err != nil {
		return err
	}
	switch {
	case alive:
		return errSessionsAppeared
	case doubt:
		return ErrInDoubt
	}
	return nil
}

var errSessionsAppeared = errors.New("it is not gone: it has started a session")

// unregister forgets what a cluster that is gone has to show. One that has it back looks at all its objects.
func (g *giveUp) unregister(ctx context.Context) error {
	if g.Origin != "" {
		return nil // it lives
	}
	return g.conn.UnregisterCluster(ctx, g.Cluster)
}

// inherited audits roles that have passed to views that are left.
func (g *giveUp) inherited(tx *Tx, kind, name, sql string, args ...any) {
	tx.queueRows(name, sql, args, func(row pgx.Rows) error {
		e := AuditEvent{ID: uuid.New(), Kind: kind, Event: AuditManages, Actor: g.Actor, Cause: "the view of cluster " + g.Cluster + " was given up"}
		err := row.Scan(&e.Cluster, &e.Pool, &e.Name, &e.Machine)
		tx.audit(e)
		return err
	})
}

// ended audits the end of a view.
func (g *giveUp) ended(tx *Tx, kind, pool, name string, machine *uuid.UUID) {
	tx.audit(AuditEvent{ID: uuid.New(), Pool: pool, Kind: kind, Name: name, Machine: machine, Event: AuditGivenUp, Actor: g.Actor, Cluster: g.Cluster, Cause: g.Cause})
}

// machines ends views of machines, together.
func (g *giveUp) machines(ctx context.Context, views []ViewRow) (n int, err error) {
	ids, uids := make([]uuid.UUID, len(views)), make([]string, len(views))
	for i, v := range views {
		if ids[i], err = uuid.Parse(v.ID); err != nil {
			return 0, fmt.Errorf("read ID of machine %s/%s: %w", v.Pool, v.Name, err)
		}
		uids[i] = v.UID
	}
	err = g.conn.transact(ctx, "give up machines", func(ctx context.Context, tx *Tx) error {
		tx.lockMachines(ids...)
		if err := g.hindered(ctx, tx); err != nil {
			return err
		}
		// Others may have been attached since the views were listed; these have something to show.
		var ended []uuid.UUID
		var pools, texts []string
		tx.queueRows("EndMachineViews", sqlEndMachineViews, []any{g.Cluster, ids, uids, g.Origin}, func(row pgx.Rows) error {
			var id uuid.UUID
			var pool, name string
			err := row.Scan(&id, &pool, &name)
			g.ended(tx, KindMachine, pool, name, &id)
			ended, pools, texts = append(ended, id), append(pools, pool), append(texts, id.String())
			return err
		})
		if err := tx.flush(ctx); err != nil {
			return err
		}
		n = len(ended)
		slices.Sort(pools)
		tx.queue("ForgetMachines", sqlForgetMachines, g.Cluster, slices.Compact(pools), texts)
		g.inherited(tx, KindMachine, "InheritMachines", sqlInheritMachines, ended)
		tx.recomputeTouched()
		return tx.flush(ctx)
	})
	return n, err
}

// claim ends the view of a claim.
func (g *giveUp) claim(ctx context.Context, views []ViewRow) (n int, err error) {
	v := views[0]
	err = g.conn.transact(ctx, "give up claim", func(ctx context.Context, tx *Tx) error {
		n = 0
		tx.queue("LockClaim", sqlLockClaim, v.Pool, v.ID)
		tx.queueRows("ClaimViewOf", sqlClaimViewOf, []any{v.Pool, v.ID, g.Cluster, v.UID, g.Origin}, func(pgx.Rows) error { n = 1; return nil })
		if err := g.hindered(ctx, tx); err != nil || n == 0 {
			return err
		}
		var r claimRecord
		if err := r.endView(ctx, tx, v.View, v.Pool, v.ID); err != nil {
			return err
		}
		g.ended(tx, KindClaim, v.Pool, v.ID, nil)
		g.inherited(tx, KindClaim, "InheritClaim", sqlInheritClaim, v.Pool, v.ID)
		return tx.flush(ctx)
	})
	return n, err
}

// provider ends the view of a provider.
func (g *giveUp) provider(ctx context.Context, views []ViewRow) (n int, err error) {
	v := views[0]
	given := func(o providerView) bool {
		return o.Cluster == g.Cluster && o.UID == v.UID && (g.Origin == "" || o.Origin == g.Origin)
	}
	err = g.conn.changeProvider(ctx, v.Pool, v.ID, func(ctx context.Context, tx *Tx, views []providerView) ([]providerView, error) {
		n = 0
		if err := g.hindered(ctx, tx); err != nil || !slices.ContainsFunc(views, given) {
			return views, err
		}
		n = 1
		tx.queue("DeleteProviderView", sqlDeleteProviderView, v.Pool, v.ID, g.Cluster, v.UID)
		tx.queue("ForgetProjection", sqlForgetProjection, g.Cluster, KindProvider, v.Pool, v.ID)
		g.ended(tx, KindProvider, v.Pool, v.ID, nil)
		g.inherited(tx, KindProvider, "InheritProvider", sqlInheritProvider, v.Pool, v.ID)
		return slices.DeleteFunc(views, given), tx.flush(ctx)
	})
	return n, err
}
