// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// twoClusters has a machine, a claim and a provider in clusters a and b; a manages all of them.
func twoClusters(t *testing.T) *lab {
	t.Helper()
	l := newLab(t, inClusterA)
	for _, cluster := range []string{"a", "b"} {
		if err := l.conn.RegisterCluster(t.Context(), cluster); err != nil {
			t.Fatal(err)
		}
		mustRegister(t, l.conn, bmdb.View{Cluster: cluster, UID: cluster, Name: "m"}, machine("m", "of two clusters", "10.0.0."+map[string]string{"a": "1", "b": "2"}[cluster]))
		parallelism := map[string]int64{"a": 1, "b": 2}[cluster]
		attachProvider(t, l.conn, bmdb.View{Cluster: cluster, UID: cluster, Name: "lab"}, limited(parallelism))
		spec := agentStart("c", bmdb.ModeOnce)
		spec.Names, spec.Parallelism = names(1), parallelism
		if _, err := l.conn.AttachClaim(t.Context(), bmdb.View{Cluster: cluster, UID: cluster, Name: "c"}, spec, true); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

// managers are the clusters that manage the machine, the claim and the provider.
func managers(l *lab) (list []string) {
	l.t.Helper()
	for _, table := range []string{"machine_views", "claim_views", "provider_views"} {
		rows, err := l.db.Query(l.t.Context(), "SELECT cluster FROM "+table+" WHERE manages ORDER BY cluster")
		if err != nil {
			l.t.Fatal(err)
		}
		for rows.Next() {
			var cluster string
			if err := rows.Scan(&cluster); err != nil {
				l.t.Fatal(err)
			}
			list = append(list, cluster)
		}
		if err := rows.Err(); err != nil {
			l.t.Fatal(err)
		}
	}
	return list
}

func takeOver(l *lab, t bmdb.Takeover) int {
	l.t.Helper()
	t.From, t.To, t.Actor = "a", "b", "somebody"
	n, err := l.conn.TakeOverRoles(l.t.Context(), t)
	if err != nil {
		l.t.Fatal(err)
	}
	return n
}

func TestRolesOfASilentCluster(t *testing.T) {
	t.Parallel()
	l := twoClusters(t)
	ago := func(minutes int) {
		t.Helper()
		l.exec("UPDATE sessions SET session_ended_at = clock_timestamp() - $1 * interval '1 minute' WHERE session_ended_at IS NOT NULL AND session_cluster = 'a'", minutes)
		l.exec("UPDATE clusters SET registered_at = clock_timestamp() - interval '1 day'")
	}
	silent := func() []string {
		t.Helper()
		list, err := l.conn.SilentClusters(t.Context(), "b", 10*time.Minute)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	holds := func(what, cluster string, isSilent bool) {
		t.Helper()
		if got := slices.Contains(silent(), "a"); got != isSilent {
			t.Errorf("%s: cluster a is silent: %v", what, got)
		}
		if n := takeOver(l, bmdb.Takeover{Silence: 10 * time.Minute}); (n > 0) != isSilent {
			t.Errorf("%s: %d roles were taken over", what, n)
		}
		if got, want := managers(l), []string{cluster, cluster, cluster}; !slices.Equal(got, want) {
			t.Errorf("%s: %v manage, want %v", what, got, want)
		}
	}
	s := l.session()
	l.exec("UPDATE clusters SET registered_at = clock_timestamp() - interval '1 day'")
	holds("a session lives", "a", false)
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	ago(9)
	holds("a session ended nine minutes ago", "a", false)
	ago(11)
	l.exec("UPDATE clusters SET registered_at = clock_timestamp() - interval '1 minute' WHERE cluster = 'a'")
	holds("the cluster was registered a minute ago", "a", false)
	ago(11)
	before := l.int("SELECT sum(rev) FROM machine_state") + l.int("SELECT sum(rev) FROM claims")
	if err := l.conn.PlaceHold(t.Context(), bmdb.Hold{Pool: pool, Name: "hold", Actor: "test"}, machinesOf(t, l, pool)); err != nil {
		t.Fatal(err)
	}
	holds("eleven minutes ago", "b", true)
	if after := l.int("SELECT sum(rev) FROM machine_state") + l.int("SELECT sum(rev) FROM claims"); after < before+2 {
		t.Error("a takeover is not shown")
	}
	if n := l.int("SELECT count(*) FROM machine_holds"); n != 1 {
		t.Error("a takeover released a hold")
	}
	if n := l.int("SELECT count(*) FROM audit_log WHERE event = 'Manages' AND cluster = 'b' AND actor = 'somebody'"); n != 3 {
		t.Errorf("%d takeovers are in the audit log, want 3", n)
	}
	// The one that comes back shows, and its spec does not count.
	mustRegister(t, l.conn, bmdb.View{Cluster: "a", UID: "a", Name: "m"}, machine("m", "of two clusters", "10.0.0.1"))
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names, spec.Parallelism = names(1), 7
	a, err := l.conn.AttachClaim(t.Context(), bmdb.View{Cluster: "a", UID: "a", Name: "c"}, spec, true)
	if err != nil || a.Manages || a.Manager != "b" {
		t.Errorf("the former manager: %+v, %v", a, err)
	}
	if n := l.int("SELECT parallelism FROM claims"); n == 7 {
		t.Error("the spec of the former manager counts")
	}
	if n := takeOver(l, bmdb.Takeover{Silence: 10 * time.Minute}); n != 0 {
		t.Errorf("%d roles were taken over again", n)
	}
}

func TestRolesTakenByHand(t *testing.T) {
	t.Parallel()
	l := twoClusters(t)
	l.session()
	if n := takeOver(l, bmdb.Takeover{Pools: []string{"other"}}); n != 0 {
		t.Errorf("%d roles of other pools were taken over", n)
	}
	if n := takeOver(l, bmdb.Takeover{}); n != 3 {
		t.Errorf("%d roles were taken over, want 3", n)
	}
	if got := managers(l); !slices.Equal(got, []string{"b", "b", "b"}) {
		t.Errorf("%v manage", got)
	}
	if n := takeOver(l, bmdb.Takeover{}); n != 0 {
		t.Errorf("%d roles were taken over again", n)
	}
}

func TestViewsOfACluster(t *testing.T) {
	t.Parallel()
	l := twoClusters(t)
	for i := range 3 {
		name := fmt.Sprintf("m%d", i)
		mustRegister(t, l.conn, view(name), machine(name, name, ""))
	}
	for kind, want := range map[string][]string{bmdb.KindMachine: {"m", "m0", "m1", "m2"}, bmdb.KindClaim: {"c"}, bmdb.KindProvider: {"lab"}} {
		var got []string
		for after := (bmdb.ViewRow{}); ; {
			page, err := l.conn.ViewsOf(t.Context(), "a", kind, after, 2)
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range page {
				got, after = append(got, v.Name), v
			}
			if len(page) < 2 {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s views: %v, want %v", kind, got, want)
		}
	}
}
