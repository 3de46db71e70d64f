// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
)

// TestViewsOfAFormerAPIServer: an API server that is given the ID of a cluster does not end the views of objects that were in the one before, because
// it does not have them; and it takes them over with objects of its own.
func TestViewsOfAFormerAPIServer(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	from := func(origin string) *bmdb.Connection {
		return bmdbtest.Open(t, url, func(c *bmdb.Config) { c.Cluster, c.Origin = "a", origin })
	}
	former, latter, unknown := from("former"), from("latter"), from("")
	spec := agentStart("c", bmdb.ModeOnce)
	spec.Names = names(1)
	apply := func(conn *bmdb.Connection, uid, name string) {
		t.Helper()
		mustRegister(t, conn, bmdb.View{Cluster: "a", UID: uid, Name: name}, machine(name, "1", "10.0.0.1"))
		attachProvider(t, conn, bmdb.View{Cluster: "a", UID: uid, Name: "lab"}, limited(1))
		if _, err := conn.AttachClaim(t.Context(), bmdb.View{Cluster: "a", UID: uid, Name: "c"}, spec, true); err != nil {
			t.Fatal(err)
		}
	}
	apply(former, "1", "m0")
	id, err := former.MachineByName(t.Context(), pool, "m0")
	if err != nil {
		t.Fatal(err)
	}
	detach := func(conn *bmdb.Connection, uid, name string) (left int) {
		t.Helper()
		if err := conn.DetachMachine(t.Context(), bmdb.View{Cluster: "a", UID: uid, Name: name}, id); err != nil {
			t.Error(err)
		}
		if err := conn.DetachProvider(t.Context(), bmdb.View{Cluster: "a", UID: uid, Name: "lab"}, pool, "lab"); err != nil {
			t.Error(err)
		}
		if _, err := conn.DetachClaim(t.Context(), bmdb.View{Cluster: "a", UID: uid, Name: "c"}, pool, "c"); err != nil {
			t.Error(err)
		}
		for _, kind := range []string{bmdb.KindMachine, bmdb.KindProvider, bmdb.KindClaim} {
			views, err := former.ViewsOf(t.Context(), "a", kind, bmdb.ViewRow{}, 10)
			if err != nil {
				t.Error(err)
			}
			left += len(views)
		}
		return left
	}
	if n := detach(latter, "1", "m0"); n != 3 {
		t.Fatalf("an API server that never had the objects has left %d views of 3", n)
	}
	before, err := former.ClaimSnapshot(t.Context(), pool, "c", bmdb.ClaimLimits{})
	if err != nil || before.State != bmdb.ClaimRunning {
		t.Errorf("the claim is %+v, %v", before, err)
	}
	// Within an API server a renamed manifest waits for the prune; a former one has nobody who could do that.
	conflict(t, former, bmdb.View{Cluster: "a", UID: "2", Name: "renamed"}, machine("renamed", "1", "10.0.0.1"), bmdb.IdentityConflict, "m0")
	apply(latter, "2", "renamed")
	if now, err := latter.MachineByName(t.Context(), pool, "renamed"); err != nil || now != id {
		t.Errorf("the machine is %s, it was %s: %v", now, id, err)
	}
	if n := detach(former, "2", "renamed"); n != 3 {
		t.Errorf("the former API server has left %d views of 3", n)
	}
	if n := detach(latter, "2", "renamed"); n != 0 {
		t.Errorf("%d views are left of objects that are gone", n)
	}
	apply(latter, "3", "m0")
	if n := detach(unknown, "3", "m0"); n != 0 {
		t.Errorf("%d views are left of objects that are gone, by who does not know its API server", n)
	}
}
