// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
)

// TestGiveUp: it shows what it would do, refuses while the cluster lives, does it, and finds nothing then.
func TestGiveUp(t *testing.T) {
	url := bmdbtest.NewURL(t)
	env := map[string]string{"BMDB_DATABASE_URL": url}
	at := func(cluster, origin string) *bmdb.Connection {
		return bmdbtest.Open(t, url, func(c *bmdb.Config) { c.Cluster, c.Origin, c.RuntimeInfo = cluster, origin, "pod-of-"+cluster })
	}
	gone, left := at("gone", "11"), at("left", "22")
	for cluster, conn := range map[string]*bmdb.Connection{"gone": gone, "left": left} {
		v := bmdb.View{Cluster: cluster, UID: cluster, Name: "m"}
		if _, err := conn.RegisterMachine(t.Context(), v, bmdb.MachineSpec{Pool: "metal", Name: "m", Provider: "lab", ProviderID: "m"}); err != nil {
			t.Fatal(err)
		}
		spec := bmdb.ClaimSpec{Pool: "metal", Key: "c", Process: "AgentStart", Mode: bmdb.ModeOnce, Names: []string{"m"}, Suspended: cluster == "gone"}
		if _, err := conn.AttachClaim(t.Context(), v, spec, true); err != nil {
			t.Fatal(err)
		}
	}
	if err := gone.AttachProvider(t.Context(), bmdb.View{Cluster: "gone", UID: "gone", Name: "lab"}, bmdb.ProviderLimits{Pool: "metal", Provider: "lab"}); err != nil {
		t.Fatal(err)
	}
	if n, err := gone.TakeOverRoles(t.Context(), bmdb.Takeover{From: "left", To: "gone", Actor: "test"}); err != nil {
		t.Fatal(n, err)
	}
	say := func(want string, args ...string) {
		t.Helper()
		got, err := execute(t, env, append([]string{"give-up", "gone", "--actor", "alice"}, args...)...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("give-up %q (-want +got):\n%s", args, diff)
		}
	}
	say(`KIND      NAMESPACE  ORIGIN  VIEWS  MANAGE  LAST  SUSPEND
machine   metal      11      1      1       0     0
claim     metal      11      1      1       0     1
provider  metal      11      1      1       1     0

Cluster gone has 3 such views. LAST: those without another beside them, 1; without them machines are left alone, works of claims are
cancelled, limits end. SUSPEND: those that suspend a claim that another cluster has too, 1; without them it may go on.
If what they were of is gone for good, say so with --yes.
`)
	nothing := "there are no such views of cluster gone\n"
	say(nothing, "--namespaces", "other")
	say(nothing, "--origin", "22")
	s, err := gone.StartSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	out, err := execute(t, env, "give-up", "gone", "--yes", "--actor", "alice")
	if err == nil || !strings.Contains(err.Error(), "pod-of-gone") || !strings.Contains(err.Error(), "at least until 2") {
		t.Errorf("while the cluster lives give-up said %q: %v", out, err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	say("gave up views of 1 machines, 1 claims and 1 providers of cluster gone for alice\n", "--yes", "--cause", "flood")
	say(nothing)
	for kind, name := range map[string]string{bmdb.KindMachine: "m", bmdb.KindClaim: "c", bmdb.KindProvider: "lab"} {
		events, err := left.AuditOf(t.Context(), "metal", kind, name, 10)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, e := range events {
			found = found || e.Event == bmdb.AuditGivenUp && e.Actor == "alice" && e.Cause == "flood" && e.Cluster == "gone"
		}
		if !found {
			t.Errorf("the end of the view of %s %s is not in the audit log: %+v", kind, name, events)
		}
	}
}
