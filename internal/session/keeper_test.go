// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr/testr"
	"github.com/google/uuid"
	"go.uber.org/goleak"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/session"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(runner{devtest.Main(m)}) }

type runner struct{ tests devtest.Runner }

func (r runner) Run() int { return r.tests.Run() }

const patience = 30 * time.Second

// server is told of each session, and serves until its context is done.
type server struct {
	sessions chan *bmdb.Session
	causes   chan error
}

func newServer() *server {
	return &server{sessions: make(chan *bmdb.Session, 10), causes: make(chan error, 10)}
}

func (s *server) Serve(ctx context.Context, session *bmdb.Session) {
	s.sessions <- session
	<-ctx.Done()
	s.causes <- context.Cause(ctx)
}

// receive waits for a value.
func receive[T any](t *testing.T, from <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s", what)
		panic("not reached")
	}
}

// keep runs a keeper and returns what ends it and waits.
func keep(t *testing.T, k *session.Keeper) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- k.Start(ctx) }()
	stop = func() {
		cancel()
		if err := receive(t, ended, "end of the keeper"); err != nil {
			t.Errorf("keeper ended with %v", err)
		}
		ended <- nil
	}
	t.Cleanup(stop)
	return stop
}

func ended(t *testing.T, conn *bmdb.Connection, id uuid.UUID) bool {
	t.Helper()
	rows, err := conn.GetSession(context.Background(), id)
	if err != nil || len(rows) != 1 {
		t.Fatalf("%d sessions: %v", len(rows), err)
	}
	return rows[0].SessionEndedAt.Valid
}

// TestSessionIsKept: there is one while the pod lives, readiness says so, and it is closed when the pod ends.
func TestSessionIsKept(t *testing.T) {
	conn, s := bmdbtest.New(t), newServer()
	k := session.New(conn, s, testr.New(t))
	if k.NeedLeaderElection() {
		t.Error("a session needs a leader")
	}
	if k.Check(nil) == nil {
		t.Error("ready before there is a session")
	}
	stop := keep(t, k)
	got := receive(t, s.sessions, "session")
	if err := k.Check(nil); err != nil || k.Current() != got {
		t.Errorf("not ready with a session: %v", err)
	}
	stop()
	if cause := receive(t, s.causes, "end of serving"); !errors.Is(cause, context.Canceled) {
		t.Errorf("serving ended because of %v", cause)
	}
	if k.Check(nil) == nil || !ended(t, conn, got.UUID) {
		t.Error("the session is not closed")
	}
}

// TestLostSessionIsReplaced: what runs under it is cancelled first.
func TestLostSessionIsReplaced(t *testing.T) {
	conn, s := bmdbtest.New(t), newServer()
	k := session.New(conn, s, testr.New(t))
	keep(t, k)
	first := receive(t, s.sessions, "session")
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if cause := receive(t, s.causes, "end of serving"); !errors.Is(cause, bmdb.ErrSessionExpired) {
		t.Errorf("serving ended because of %v", cause)
	}
	second := receive(t, s.sessions, "second session")
	if second.UUID == first.UUID || second.Expired() {
		t.Error("the session is not a new one")
	}
}

// lingering serves on after its context is done, until it is told.
type lingering struct {
	*server
	leave chan struct{}
}

func (l *lingering) Serve(ctx context.Context, s *bmdb.Session) {
	l.server.Serve(ctx, s)
	<-l.leave
}

// TestNotReadyWhileALostSessionIsServed: what still ends under a session that is over makes nobody ready, and keeps the next one waiting.
func TestNotReadyWhileALostSessionIsServed(t *testing.T) {
	conn, s := bmdbtest.New(t), &lingering{newServer(), make(chan struct{})}
	k := session.New(conn, s, testr.New(t))
	keep(t, k)
	first := receive(t, s.sessions, "session")
	if err := first.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if cause := receive(t, s.causes, "end of serving"); !errors.Is(cause, bmdb.ErrSessionExpired) {
		t.Errorf("serving ended because of %v", cause)
	}
	if k.Check(nil) == nil || k.Current() != nil {
		t.Error("ready under a session that is over")
	}
	if len(s.sessions) != 0 {
		t.Error("two sessions at once")
	}
	close(s.leave)
	second := receive(t, s.sessions, "second session")
	if err := k.Check(nil); err != nil || k.Current() != second {
		t.Errorf("not ready with the next session: %v", err)
	}
}

// failing cannot start sessions for a while.
type failing struct {
	*bmdb.Connection
	left  atomic.Int32
	with  error
	check func()
}

func (f *failing) StartSession(ctx context.Context, opts ...bmdb.SessionOption) (*bmdb.Session, error) {
	if f.left.Load() < 2 {
		f.check() // what the start before has left behind
	}
	if f.left.Add(-1) >= 0 {
		return nil, f.with
	}
	return f.Connection.StartSession(ctx, opts...)
}

// TestStartIsTriedAgain, whatever keeps it from succeeding, and the readiness check says what that is.
func TestStartIsTriedAgain(t *testing.T) {
	for _, with := range []error{errors.New("no connection"), fmt.Errorf("start session: %w", bmdb.ErrSchemaTooNew)} {
		t.Run(with.Error(), func(t *testing.T) {
			f, s := &failing{Connection: bmdbtest.New(t), with: with}, newServer()
			f.left.Store(2)
			k := session.New(f, s, testr.New(t))
			f.check = func() {
				if err := k.Check(nil); !errors.Is(err, with) {
					t.Errorf("not ready because of %v, want %v", err, with)
				}
			}
			keep(t, k)
			got := receive(t, s.sessions, "session after two failures")
			if f.left.Load() != -1 {
				t.Errorf("started %d times too often", -1-f.left.Load())
			}
			if err := k.Check(nil); err != nil {
				t.Errorf("not ready with a session: %v", err)
			}
			f.left.Store(2) // the next one is as the first
			if err := got.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			receive(t, s.sessions, "session after two more failures")
		})
	}
}
