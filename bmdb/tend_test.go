// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"testing"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// A session looks for all that anybody waits for, and tells each of what is his: claims nobody owns, and what the cluster has still to show.
func TestSessionTellsOfWhatItSees(t *testing.T) {
	t.Parallel()
	l := newLab(t, inClusterA)
	if err := l.conn.RegisterCluster(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, looking := l.conn.ProjectionsSeen(); looking {
		t.Error("somebody looks without a session")
	}
	s, err := l.conn.StartSession(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changes, _ := l.conn.ProjectionsSeen()
	eventually(t, "the session to look", func() bool {
		_, looking := l.conn.ProjectionsSeen()
		return looking
	})
	if n := len(s.ClaimsSeen()); n != 0 {
		t.Error("claims were seen where there are none")
	}

	other := l.another(inClusterA)
	register(t, other, 1)
	done(t, "changes to show", changes)
	pending := func() (list []bmdb.Pending) {
		t.Helper()
		list, err := l.conn.PendingProjections(t.Context(), "a", 10)
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if len(pending()) == 0 {
		t.Error("what was seen is not there")
	}
	spec := agentStart("seen", bmdb.ModeOnce)
	spec.Selector = &bmdb.Selector{}
	attachOnly(t, other, spec)
	done(t, "claims to own", s.ClaimsSeen())
	if owned, err := s.OwnClaims(t.Context(), 10); err != nil || len(owned) != 1 {
		t.Errorf("own %d claims, %v", len(owned), err)
	}
	if l.session(bmdb.WithoutMaintenance()).ClaimsSeen() != nil {
		t.Error("a session that does not look tells of claims")
	}

	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "nobody to look any more", func() bool {
		_, looking := l.conn.ProjectionsSeen()
		return !looking
	})
}
