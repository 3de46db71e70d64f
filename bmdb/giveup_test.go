// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

func giveUp(t *testing.T, conn *bmdb.Connection, g bmdb.GiveUp) bmdb.GivenUp {
	t.Helper()
	g.Actor, g.Cause = "somebody", "it burnt down"
	done, err := conn.GiveUpViews(t.Context(), g, nil)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

func (l *lab) suspended(key string) bool {
	l.t.Helper()
	return l.int("SELECT count(*) FROM claims WHERE claim_key = $1 AND suspended", key) == 1
}

// TestGiveUpTheManager: what only the cluster said does not count any more, its roles have passed when its views are gone, and when it comes back its
// old specs do not win.
func TestGiveUpTheManager(t *testing.T) {
	t.Parallel()
	l := twoClusters(t)
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names, spec.Parallelism, spec.Suspended = names(1), 1, true
	attachAs := func(cluster string, s bmdb.ClaimSpec) bmdb.Attachment {
		t.Helper()
		a, err := l.conn.AttachClaim(t.Context(), bmdb.View{Cluster: cluster, UID: cluster, Name: "c"}, s, true)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	attachAs("a", spec)
	if !l.suspended("c") || provider(t, l.conn, "b").Parallelism == nil || *provider(t, l.conn, "b").Parallelism != 1 {
		t.Fatal("what cluster a says does not count")
	}
	id := machinesOf(t, l, pool)[0]
	if done := giveUp(t, l.conn, bmdb.GiveUp{Cluster: "a"}); done != (bmdb.GivenUp{Machines: 1, Claims: 1, Providers: 1}) {
		t.Errorf("given up: %+v", done)
	}
	if l.suspended("c") {
		t.Error("the suspend of a cluster that is given up counts")
	}
	if p := provider(t, l.conn, "b"); p.Parallelism == nil || *p.Parallelism != 2 || !p.Manages {
		t.Errorf("the provider of the cluster that is left: %+v", p)
	}
	if got := managers(l); !slices.Equal(got, []string{"b", "b", "b"}) {
		t.Errorf("%v manage", got)
	}
	if s := snapshotOf(t, l.conn, id); slices.Contains(s.Facts, bmdb.FactViewLost) {
		t.Error("a machine that has a view has lost it")
	}
	for event, cluster := range map[string]string{bmdb.AuditGivenUp: "a", bmdb.AuditManages: "b"} {
		if n := l.int("SELECT count(*) FROM audit_log WHERE event = $1 AND cluster = $2 AND actor = 'somebody'", event, cluster); n != 3 {
			t.Errorf("%d events %s of cluster %s are in the audit log, want 3", n, event, cluster)
		}
	}
	if n := l.int("SELECT (SELECT count(*) FROM clusters WHERE cluster = 'a') + (SELECT count(*) FROM projection WHERE cluster = 'a')"); n != 0 {
		t.Errorf("something is kept for the cluster to show: %d rows", n)
	}
	if _, err := l.conn.PendingProjections(t.Context(), "a", 1); !errors.Is(err, bmdb.ErrNoSuchCluster) {
		t.Errorf("the cluster is told %v, and does not look at everything", err)
	}
	// It comes back before the other has said anything, with what it always said.
	r := mustRegister(t, l.conn, bmdb.View{Cluster: "a", UID: "a", Name: "m"}, machine("m", "of two clusters", "10.0.0.9"))
	if r.Manages || r.Manager != "b" || r.MachineID != id || snapshotOf(t, l.conn, id).Address == "10.0.0.9" {
		t.Errorf("the stale machine: %+v, address %s", r, snapshotOf(t, l.conn, id).Address)
	}
	spec.Suspended, spec.Parallelism = false, 7
	if a := attachAs("a", spec); a.Manages || a.Manager != "b" || l.int("SELECT parallelism FROM claims") == 7 {
		t.Errorf("the stale claim: %+v", a)
	}
	attachProvider(t, l.conn, bmdb.View{Cluster: "a", UID: "a", Name: "lab"}, limited(9))
	if p := provider(t, l.conn, "b"); !p.Manages || *p.Parallelism != 2 {
		t.Errorf("the stale provider: %+v", p)
	}
}

// TestGiveUpTheLastView: machines are left alone, works are cancelled, counts are kept.
func TestGiveUpTheLastView(t *testing.T) {
	t.Parallel()
	l := newLab(t, func(c *bmdb.Config) { c.Cluster = "b" })
	s := l.session()
	register(t, l.conn, 3)
	for _, cluster := range []string{"a", "b"} {
		attachProvider(t, l.conn, bmdb.View{Cluster: cluster, UID: cluster, Name: "lab"}, bmdb.ProviderLimits{Pool: pool, Provider: "lab"})
	}
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names, spec.Parallelism = names(3), 2
	for _, cluster := range []string{"a", "b"} {
		if _, err := l.conn.AttachClaim(t.Context(), bmdb.View{Cluster: cluster, UID: cluster, Name: "c"}, spec, true); err != nil {
			t.Fatal(err)
		}
	}
	owned, err := s.OwnClaims(t.Context(), 1)
	if err != nil || len(owned) != 1 {
		t.Fatalf("owned %d claims: %v", len(owned), err)
	}
	works := round(t, s, owned[0], 2)
	finish(t, works[0])
	// Deleted in the cluster that is left: as long as the other counts, nothing is cancelled.
	if _, err := l.conn.DetachClaim(t.Context(), bmdb.View{Cluster: "b", UID: "b", Name: "c"}, pool, "c"); err != nil {
		t.Fatal(err)
	}
	if c := snapshot(t, l.conn, "c"); c.State != bmdb.ClaimRunning {
		t.Fatalf("before: %+v", c)
	}
	var told []bmdb.GivenUp
	done, err := l.conn.GiveUpViews(t.Context(), bmdb.GiveUp{Cluster: "a", Actor: "somebody"}, func(g bmdb.GivenUp) { told = append(told, g) })
	if err != nil || done != (bmdb.GivenUp{Machines: 3, Claims: 1, Providers: 1}) {
		t.Fatalf("given up: %+v, %v", done, err)
	}
	if len(told) != 3 || told[2] != done {
		t.Errorf("progress: %+v", told)
	}
	if c := snapshot(t, l.conn, "c"); c.State != bmdb.ClaimDetached || c.Active != 1 || c.Succeeded != 1 {
		t.Errorf("after: %+v", c)
	}
	select {
	case <-works[1].Context().Done():
	case <-time.After(patience):
		t.Error("the work is not cancelled")
	}
	for _, id := range machinesOf(t, l, pool) {
		if s := snapshotOf(t, l.conn, id); !slices.Contains(s.Facts, bmdb.FactViewLost) {
			t.Errorf("machine %s has not lost its view: %v", s.Name, s.Facts)
		}
	}
	if done := giveUp(t, l.conn, bmdb.GiveUp{Cluster: "a"}); done != (bmdb.GivenUp{}) {
		t.Errorf("given up again: %+v", done)
	}
}

// TestGiveUpIsRefused while the cluster lives, or the database may be the wrong one. A session that nobody was there to end is ended.
func TestGiveUpIsRefused(t *testing.T) {
	t.Parallel()
	l := twoClusters(t)
	pod := l.another(func(c *bmdb.Config) { c.Cluster, c.RuntimeInfo, c.Origin = "a", "pod-of-a", "now" })
	start(t, pod, bmdb.WithoutMaintenance())
	refused := func(g bmdb.GiveUp, says ...string) {
		t.Helper()
		done, err := l.conn.GiveUpViews(t.Context(), g, nil)
		var lives *bmdb.ClusterLivesError
		if !errors.As(err, &lives) || len(lives.Sessions) != 1 || lives.Sessions[0].Until.Before(time.Now().Add(time.Minute)) || done != (bmdb.GivenUp{}) {
			t.Fatalf("give up %+v: %+v, %v", g, done, err)
		}
		for _, s := range says {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("the refusal of %+v does not say %q: %v", g, s, err)
			}
		}
	}
	refused(bmdb.GiveUp{Cluster: "a"}, "pod-of-a", "until")
	refused(bmdb.GiveUp{Cluster: "a", Pools: []string{"other"}})
	refused(bmdb.GiveUp{Cluster: "a", Origin: "now"}, "pod-of-a", "API server now is the one")
	l.exec("UPDATE sessions SET session_origin = ''")
	refused(bmdb.GiveUp{Cluster: "a", Origin: "former"}, "do not say")
	if got := managers(l); !slices.Equal(got, []string{"a", "a", "a"}) {
		t.Errorf("%v manage", got)
	}

	l.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '61 seconds'")
	alarm := bmdb.Testimony{Kind: bmdb.KindClaim, Pool: pool, ID: "c", Cluster: "b", Database: uuid.New(), Revision: 1}
	if _, err := l.conn.Hear(t.Context(), []bmdb.Testimony{alarm}); err != nil {
		t.Fatal(err)
	}
	if done, err := l.conn.GiveUpViews(t.Context(), bmdb.GiveUp{Cluster: "a"}, nil); !errors.Is(err, bmdb.ErrInDoubt) || done != (bmdb.GivenUp{}) {
		t.Errorf("in doubt: %+v, %v", done, err)
	}
	if _, err := l.conn.AcknowledgeDatabase(t.Context(), "somebody", "looked"); err != nil {
		t.Fatal(err)
	}
	if done := giveUp(t, l.conn, bmdb.GiveUp{Cluster: "a"}); done != (bmdb.GivenUp{Machines: 1, Claims: 1, Providers: 1}) {
		t.Errorf("given up: %+v", done)
	}
	if n := l.int("SELECT count(*) FROM sessions WHERE session_end_reason = 'expired'"); n != 1 {
		t.Errorf("%d dead sessions were ended", n)
	}
}

// TestGiveUpIsInterrupted by a program of the cluster that comes back; what it had not reached yet goes when it is called again.
func TestGiveUpIsInterrupted(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	register(t, l.conn, 120)
	returning := l.another(inClusterA)
	ctx := context.Background()
	var s *bmdb.Session
	conn := l.another(func(c *bmdb.Config) {
		c.BeforeStatement = func(_ context.Context, b bmdb.Boundary) (err error) {
			if b.Operation == "give up machines" && b.Statement == "LockMachines" && s == nil && l.int("SELECT count(*) FROM machine_views WHERE attached") < 120 {
				s, err = returning.StartSession(ctx, bmdb.WithoutMaintenance())
			}
			return err
		}
	})
	var lives *bmdb.ClusterLivesError
	done, err := conn.GiveUpViews(t.Context(), bmdb.GiveUp{Cluster: "a"}, nil)
	if !errors.As(err, &lives) || done.Machines == 0 || done.Machines == 120 {
		t.Fatalf("given up: %+v, %v", done, err)
	}
	if n := l.int("SELECT count(*) FROM machine_views WHERE attached"); int(n) != 120-done.Machines {
		t.Errorf("%d views are left of 120, and %d were given up", n, done.Machines)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if again := giveUp(t, l.conn, bmdb.GiveUp{Cluster: "a"}); again.Machines != 120-done.Machines {
		t.Errorf("given up then: %+v, before %+v", again, done)
	}
}

// TestGiveUpAPoolOrAFormerAPIServer: only what was named ends. The cluster may live when a former API server of it is given up.
func TestGiveUpAPoolOrAFormerAPIServer(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	at := func(origin string) *bmdb.Connection {
		return l.another(func(c *bmdb.Config) { c.Cluster, c.Origin = "a", origin })
	}
	apply := func(conn *bmdb.Connection, pool, uid, name string) {
		t.Helper()
		v := bmdb.View{Cluster: "a", UID: uid, Name: name}
		m := machine(name, pool+name, "")
		m.Pool = pool
		mustRegister(t, conn, v, m)
		if err := conn.AttachProvider(t.Context(), v, bmdb.ProviderLimits{Pool: pool, Provider: name}); err != nil {
			t.Fatal(err)
		}
		spec := agentStart(name, bmdb.ModeOnce)
		spec.Pool, spec.Names = pool, []string{name}
		if _, err := conn.AttachClaim(t.Context(), v, spec, true); err != nil {
			t.Fatal(err)
		}
	}
	former, latter := at("former"), at("latter")
	start(t, latter, bmdb.WithoutMaintenance())
	for _, pool := range []string{"one", "two"} {
		apply(former, pool, "1", "x")
		apply(former, pool, "2", "y")
		apply(latter, pool, "3", "y") // it is of the latter now
	}
	left := func() (list []string) {
		t.Helper()
		counts, err := l.conn.CountViews(t.Context(), "a", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range counts {
			list = append(list, fmt.Sprintf("%s %s %s %d %d %d", c.Kind, c.Pool, c.Origin, c.Views, c.Manages, c.Last))
		}
		slices.Sort(list)
		return list
	}
	want := func(origins map[string][]string) {
		t.Helper()
		var list []string
		for pool, of := range origins {
			for _, origin := range of {
				for _, kind := range []string{bmdb.KindMachine, bmdb.KindClaim, bmdb.KindProvider} {
					list = append(list, fmt.Sprintf("%s %s %s 1 1 1", kind, pool, origin))
				}
			}
		}
		slices.Sort(list)
		if got := left(); !slices.Equal(got, list) {
			t.Errorf("views: %q\nwant: %q", got, list)
		}
	}
	want(map[string][]string{"one": {"former", "latter"}, "two": {"former", "latter"}})
	each := bmdb.GivenUp{Machines: 1, Claims: 1, Providers: 1}
	if done := giveUp(t, l.conn, bmdb.GiveUp{Cluster: "a", Origin: "former", Pools: []string{"one"}}); done != each {
		t.Errorf("given up: %+v", done)
	}
	want(map[string][]string{"one": {"latter"}, "two": {"former", "latter"}})
	if done := giveUp(t, l.conn, bmdb.GiveUp{Cluster: "a", Origin: "former"}); done != each {
		t.Errorf("given up: %+v", done)
	}
	want(map[string][]string{"one": {"latter"}, "two": {"latter"}})
}

// TestGiveUpMeetsAnObjectOfNow: a view that was listed, and is of an object of the present API server when its turn comes, stays with all that it has to
// show.
func TestGiveUpMeetsAnObjectOfNow(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	at := func(origin string) *bmdb.Connection {
		return l.another(func(c *bmdb.Config) { c.Cluster, c.Origin = "a", origin })
	}
	if err := l.conn.RegisterCluster(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	former, latter := at("former"), at("latter")
	mustRegister(t, former, bmdb.View{Cluster: "a", UID: "1", Name: "m"}, machine("m", "m", ""))
	conn := l.another(func(c *bmdb.Config) {
		c.BeforeStatement = func(ctx context.Context, b bmdb.Boundary) error {
			if b.Operation != "give up machines" || b.Statement != "LockMachines" {
				return nil
			}
			if _, err := latter.RegisterMachine(ctx, bmdb.View{Cluster: "a", UID: "2", Name: "m"}, machine("m", "m", "")); err != nil {
				return err
			}
			_, err := latter.Spread(ctx, 100)
			return err
		}
	})
	if done, err := conn.GiveUpViews(t.Context(), bmdb.GiveUp{Cluster: "a", Origin: "former"}, nil); err != nil || done != (bmdb.GivenUp{}) {
		t.Errorf("given up: %+v, %v", done, err)
	}
	if got := l.int("SELECT count(*) FROM machine_views WHERE attached AND manages AND uid = '2'"); got != 1 {
		t.Error("the view of the present object has ended")
	}
	if got := l.int("SELECT count(*) FROM projection WHERE cluster = 'a' AND rev <> done_rev"); got != 1 {
		t.Errorf("%d changes are kept for it to show", got)
	}
}
