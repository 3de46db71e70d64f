// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package session keeps one session in the database for the pod: started, lost and started again, and closed when the pod ends.
package session

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Starter starts sessions; a *bmdb.Connection does.
type Starter interface {
	StartSession(ctx context.Context, opts ...bmdb.SessionOption) (*bmdb.Session, error)
}

// Server is what runs under a session.
type Server interface {
	// Serve uses the session until ctx is done: because the session is over, or because the pod ends. It returns when all that it
	// started under the session has ended, or a grace later. It is called again with the next session.
	Serve(ctx context.Context, s *bmdb.Session)
}

const (
	backoffFirst = 250 * time.Millisecond
	backoffLast  = 15 * time.Second
	closeTimeout = 10 * time.Second
)

// Keeper is a manager's Runnable that holds the pod's session. It needs no leader: every pod has a session.
type Keeper struct {
	starter Starter
	server  Server
	log     logr.Logger
	current atomic.Pointer[bmdb.Session]
	refused atomic.Pointer[error] // why the last start failed
}

// New returns a keeper of sessions that starter starts, under which server runs.
func New(starter Starter, server Server, log logr.Logger) *Keeper {
	return &Keeper{starter: starter, server: server, log: log}
}

// NeedLeaderElection is false: each pod has a session of its own.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Current returns the session, or nil while there is none.
func (k *Keeper) Current() *bmdb.Session {
	s := k.current.Load()
	if s == nil || s.Expired() {
		return nil
	}
	return s
}

var errNoSession = errors.New("this pod has no session in the database")

// Check is a readiness check: it fails while there is no session, and says why none could be started.
func (k *Keeper) Check(*http.Request) error {
	if k.Current() != nil {
		return nil
	}
	if refused := k.refused.Load(); refused != nil {
		return fmt.Errorf("%w: %w", errNoSession, *refused)
	}
	return errNoSession
}

// Start keeps sessions until ctx is done, and closes the last of them. bmdb.ErrDatabaseChanged ends it: all that this process knows is of
// another database, and the next process begins with nothing. bmdb.ErrSchemaTooNew does not: the schema may be migrated back, and until this
// pod is replaced by one of the version that the schema is for, it starts nothing.
func (k *Keeper) Start(ctx context.Context) error {
	for wait := backoffFirst; ctx.Err() == nil; {
		began := time.Now()
		err := k.hold(ctx)
		if errors.Is(err, bmdb.ErrDatabaseChanged) {
			return err
		}
		if time.Since(began) > backoffLast {
			wait = backoffFirst // it lived for a while
		}
		wait = k.pause(ctx, err, wait)
	}
	return nil
}

// pause waits after a session before the next one. It returns the wait after that.
func (k *Keeper) pause(ctx context.Context, err error, wait time.Duration) time.Duration {
	if ctx.Err() == nil {
		if errors.Is(err, bmdb.ErrSchemaTooNew) {
			k.log.Error(err, "this pod starts nothing, because a newer version of the operator has migrated the database; it is tried again", "wait", wait)
		} else {
			k.log.Info("no session; starting another one", "reason", errorText(err), "wait", wait)
		}
		sleep(ctx, wait/2+rand.N(wait))
	}
	return min(2*wait, backoffLast)
}

func errorText(err error) string {
	if err == nil {
		return "the session was lost"
	}
	return err.Error()
}

// hold starts a session and serves under it until it is over or ctx is done.
func (k *Keeper) hold(ctx context.Context) error {
	// A session outlives ctx by its orderly end, but a start that is under way does not.
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	stop := context.AfterFunc(ctx, end)
	s, err := k.starter.StartSession(life)
	started := stop()
	if err != nil {
		k.refused.Store(&err)
		return err
	}
	k.refused.Store(nil)
	serving, cancel := context.WithCancelCause(ctx)
	lost := context.AfterFunc(s.Context(), func() { cancel(bmdb.ErrSessionExpired) })
	if started {
		k.current.Store(s)
		k.server.Serve(serving, s)
		k.current.Store(nil)
	}
	lost()
	cancel(nil)
	closing, cancelClosing := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancelClosing()
	// The session logs what fails; then its lease ends it.
	_ = s.Close(closing)
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
