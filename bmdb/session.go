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

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// Session is the liveness of one program in the database. Everything that it works on dies with it: its works' contexts are cancelled
// before anyone else may start on their machines, and their locks are taken over by other programs. One session for each program is
// enough. It is safe for concurrent use. The caller closes it.
type Session struct {
	// UUID is the session's identity in the database.
	UUID uuid.UUID

	conn   *Connection
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	trusted  atomic.Int64 // boottime until which the session is trusted
	lastBeat atomic.Int64 // unix nanoseconds of the last good beat, for people

	ends   chan *endRequest
	ending atomic.Int64 // members of groups that are being committed
	ended  sync.Once
	checks chan *check // those that nobody asks for yet

	closing sync.Mutex // of Close, which is called by its caller and by the end of a context
	closed  bool

	over    chan struct{} // closed when nothing of the session runs any more
	unowned chan struct{} // see ClaimsSeen

	mu     sync.Mutex
	works  map[uuid.UUID]*Work
	claims map[string]*OwnedClaim // by pool and key
}

// SessionOption changes how a session is run.
type SessionOption func(*sessionOptions)

type sessionOptions struct{ withoutMaintenance, withoutBeat bool }

// WithoutMaintenance leaves the common chores of all programs to the others: ending dead sessions, sweeping, promoting due timers,
// filling in processes. At least one program that uses the database must do them.
func WithoutMaintenance() SessionOption {
	return func(o *sessionOptions) { o.withoutMaintenance = true }
}

// withoutBeat makes a session that dies of its lease, for tests.
func withoutBeat() SessionOption { return func(o *sessionOptions) { o.withoutBeat = true } }

// StartSession starts a session and keeps it alive until it is closed, lost, or ctx ends, which closes it too. Unless the session is
// started WithoutMaintenance, it also does its part of the chores that every program shares. ErrDatabaseChanged: open the database again.
// ErrSchemaTooNew: the schema was migrated further than this version can stand since the connection was opened. Sessions that live go on; try
// again, until the program is replaced or the schema is migrated back.
func (c *Connection) StartSession(ctx context.Context, opts ...SessionOption) (*Session, error) {
	var o sessionOptions
	for _, opt := range opts {
		opt(&o)
	}
	s := &Session{UUID: uuid.New(), conn: c, works: map[uuid.UUID]*Work{}, claims: map[string]*OwnedClaim{}, ends: make(chan *endRequest), checks: make(chan *check, maxQuestion),
		over: make(chan struct{})}
	sent := now()
	err := c.transact(ctx, "start session", func(ctx context.Context, tx *Tx) error {
		var database uuid.UUID
		var oldest int64
		tx.queueIdentity(func(id uuid.UUID, _ int64) { database = id })
		tx.queueRows("Oldest", sqlSchemaOldest, nil, func(row pgx.Rows) error { return row.Scan(&oldest) })
		if err := tx.flush(ctx); err != nil {
			return err
		}
		if database != c.identity.ID {
			return ErrDatabaseChanged
		}
		if err := stands(oldest, migrations.Latest); err != nil {
			return err
		}
		sent = now()
		tx.queue("StartSession", sqlStartSession, s.UUID, c.config.ComponentName, c.config.RuntimeInfo, c.config.Cluster, c.lease.length.Milliseconds(), c.config.ClaimsOnly,
			c.config.Origin)
		return nil
	})
	if err != nil && !errors.Is(err, ErrAmbiguous) { // an ambiguous start is settled by the first beat
		return nil, fmt.Errorf("start session: %w", err)
	}
	s.ctx, s.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	s.beaten(sent)
	c.observer.SessionStarted()
	c.log.InfoContext(ctx, "started session", "session", s.UUID)
	if !o.withoutBeat {
		s.run(s.maintainLease)
	}
	s.run(s.guardTrust)
	s.run(s.commitEnds)
	s.run(s.askChecks)
	if !o.withoutMaintenance {
		s.unowned = make(chan struct{}, 1)
		m := newMaintenance(c)
		for _, chore := range m.chores(s) {
			s.run(chore)
		}
	}
	context.AfterFunc(ctx, func() {
		if s.ctx.Err() == nil {
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.lease.margin()+time.Second)
			defer cancel()
			_ = s.Close(closing) // its error is logged
		}
	})
	return s, nil
}

func (s *Session) run(loop func(ctx context.Context)) {
	s.wg.Add(1)
	go func() {
		defer s.wg.Done()
		loop(s.ctx)
	}()
}

// Done is closed when the session is over, by Close or by loss. The contexts of its works are cancelled by then.
func (s *Session) Done() <-chan struct{} { return s.ctx.Done() }

// Context is done when the session is over; context.Cause says why.
func (s *Session) Context() context.Context { return s.ctx }

// Expired tells whether the session is over.
func (s *Session) Expired() bool { return s.ctx.Err() != nil || now() >= boottime(s.trusted.Load()) }

// LastBeat is when the last beat succeeded, by the local clock; for display only.
func (s *Session) LastBeat() time.Time { return time.Unix(0, s.lastBeat.Load()) }

// Works is the number of works that are open under the session in this process.
func (s *Session) Works() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.works)
}

func (s *Session) beaten(sent boottime) {
	s.trusted.Store(int64(s.conn.lease.trusted(sent)))
	s.lastBeat.Store(time.Now().UnixNano())
}

// maintainLease beats until the session is over. A beat that finds the lease gone or run out loses the session at once; an error of
// the database does not: it is tried again, for as long as the session is trusted.
func (s *Session) maintainLease(ctx context.Context) {
	wait := s.conn.lease.beat()
	for {
		if !sleep(ctx, wait) {
			return
		}
		start := now()
		err := s.beat(ctx)
		s.conn.observer.Beat(err == nil, now().sub(start))
		wait = s.conn.lease.beat()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, ErrSessionExpired):
			s.lose("the database ended it")
			return
		case err != nil:
			s.conn.log.WarnContext(ctx, "beat failed", "session", s.UUID, "error", err)
			wait = min(wait, max(s.conn.lease.beat()/5, 50*time.Millisecond))
		}
	}
}

// beat extends the lease, proves that the work pool commits, and compares what the database believes with what this process does. A
// session whose works can no longer be committed stops beating: it would only keep others away from their machines.
func (s *Session) beat(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, max(s.conn.lease.margin(), 250*time.Millisecond))
	defer cancel()
	if err := s.provePool(ctx); err != nil {
		return err
	}
	sent, alive := now(), false
	var seen []sessionWork
	err := sendOn(ctx, s.conn.beats,
		statement{name: "Beat", sql: sqlBeat, args: []any{s.UUID, s.conn.lease.watch().Milliseconds(), s.conn.lease.length.Milliseconds()}, read: func(rows pgx.Rows) error {
			for rows.Next() {
				alive = true
				var process *string
				var work uuid.NullUUID
				var old, detached *bool
				var machine uuid.NullUUID
				if err := rows.Scan(&machine, &process, &work, &old, &detached); err != nil {
					return err
				}
				if work.Valid {
					seen = append(seen, sessionWork{Machine: machine.UUID, Process: *process, WorkID: work.UUID, Old: *old, Detached: *detached})
				}
			}
			return nil
		}},
	)
	if err != nil {
		return fmt.Errorf("beat: %w", err)
	}
	if !alive {
		return ErrSessionExpired
	}
	s.beaten(sent)
	s.compare(ctx, sent, seen)
	return nil
}

// provePool commits something trivial through the pool that works commit through, while works are open and nothing else has proved it
// lately.
func (s *Session) provePool(ctx context.Context) error {
	if s.Works() == 0 {
		s.conn.committed.Store(int64(now()))
		return nil
	}
	if now().sub(boottime(s.conn.committed.Load())) < s.conn.lease.beat() {
		return nil
	}
	proving, cancel := context.WithTimeout(ctx, max(s.conn.lease.margin()/2, 100*time.Millisecond))
	defer cancel()
	if _, err := s.conn.pool.Exec(proving, "SELECT 1"); err == nil {
		s.conn.committed.Store(int64(now()))
		return nil
	} else if now().sub(boottime(s.conn.committed.Load())) >= s.conn.lease.length {
		return fmt.Errorf("the work pool has not committed for a lease: %w", err)
	}
	return nil
}

// sessionWork is a work as the database knows it. Old: for longer than half a lease. Detached: its claim's last view is gone.
type sessionWork struct {
	Machine  uuid.UUID
	Process  string
	WorkID   uuid.UUID
	Old      bool
	Detached bool
}

// compare ends what the database and this process disagree on: works that the database does not know any more are lost, works that
// only the database knows are released, if they are too old to be a start under way.
func (s *Session) compare(ctx context.Context, sent boottime, seen []sessionWork) {
	known := make(map[uuid.UUID]sessionWork, len(seen))
	for _, w := range seen {
		known[w.WorkID] = w
	}
	var gone, detached []*Work
	var unknown []endRequest
	s.mu.Lock()
	for id, w := range s.works {
		if k, ok := known[id]; !ok && w.known < sent && !w.ending.Load() {
			gone = append(gone, w)
		} else if k.Detached {
			detached = append(detached, w)
		}
	}
	for _, k := range seen {
		if s.works[k.WorkID] == nil && k.Old {
			unknown = append(unknown, endRequest{machine: k.Machine, process: k.Process, work: k.WorkID, event: EventReleased, cause: "no worker of its session knows it"})
		}
	}
	s.mu.Unlock()
	for _, w := range gone {
		w.lose(ErrWorkLost)
	}
	for _, w := range detached {
		w.cancel(errClaimGone)
	}
	if len(unknown) > 0 {
		if _, err := s.conn.endAll(ctx, "release unknown works", s.actor(), unknown); err != nil {
			s.conn.log.WarnContext(ctx, "releasing works that no worker knows failed", "session", s.UUID, "error", err)
		}
	}
}

// errClaimGone is the cause with which a work's context ends when its claim was deleted.
var errClaimGone = errors.New("the claim was deleted")

// guardTrust ends the session when it can no longer prove that it lives.
func (s *Session) guardTrust(ctx context.Context) {
	for {
		left := boottime(s.trusted.Load()).sub(now())
		if left <= 0 {
			s.lose("no beat succeeded in time")
			return
		}
		if !sleep(ctx, left) {
			return
		}
	}
}

// lose ends the session in this process. The database, or the others, do the rest.
func (s *Session) lose(why string) {
	if s.ctx.Err() != nil {
		return
	}
	s.conn.log.Warn("lost session", "session", s.UUID, "reason", why)
	s.end("expired")
}

func (s *Session) end(reason string) {
	s.ended.Do(func() {
		s.cancel(ErrSessionExpired)
		s.conn.observer.SessionEnded(reason)
		go func() {
			s.wg.Wait()
			close(s.over)
		}()
	})
}

// Close ends the session and hands over at once: its lease is ended first, so that it starts nothing more, then its works' contexts
// are cancelled, and what is still open is released. It waits for the session's own goroutines, not for those of its works. It may be
// called after a loss, and more than once: a second call does what the first could not.
func (s *Session) Close(ctx context.Context) error {
	s.closing.Lock()
	defer s.closing.Unlock()
	if s.closed {
		return nil
	}
	expireErr := s.conn.again(ctx, "ExpireLease", func() error {
		_, err := s.conn.beats.Exec(ctx, sqlExpireLease, s.UUID)
		return err
	})
	s.end("closed")
	err := s.handOver(ctx)
	select {
	case <-s.over:
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err())
	}
	if err = errors.Join(expireErr, err); err != nil {
		s.conn.log.WarnContext(ctx, "closing session failed; its lease ends it", "session", s.UUID, "error", err)
		return fmt.Errorf("close session %s: %w", s.UUID, err)
	}
	s.closed = true
	s.conn.log.InfoContext(ctx, "closed session", "session", s.UUID)
	return nil
}

// handOver releases what is open, then ends the session, and looks again: a start that had passed its gate when the lease was ended holds
// up the end of the session until it commits.
func (s *Session) handOver(ctx context.Context) error {
	release := func() error { return s.conn.endWorksOf(ctx, s.UUID, EventReleased, "session closed", s.actor()) }
	if err := release(); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := s.conn.transact(ctx, "end session", func(_ context.Context, tx *Tx) error {
			tx.queue("EndSession", sqlEndSession, s.UUID, "closed")
			return nil
		})
		if err == nil {
			return release()
		}
		if !errors.Is(err, ErrAmbiguous) || !pause(ctx, attempt) { // ending it twice is ending it once
			return err
		}
	}
}

// actor is who did something, in history.
func (s *Session) actor() string { return s.conn.config.RuntimeInfo }

// Transact runs fn in a transaction that takes place only while the session lives (ErrSessionExpired otherwise). fn may run more than
// once and must not have effects outside of the database. Machines that it writes to are evaluated again in the same transaction. A
// transaction that changes several machines names them in ascending order, or it may be tried again more often than needed.
func (s *Session) Transact(ctx context.Context, fn func(q *model.Queries) error) error {
	if s.Expired() {
		return ErrSessionExpired
	}
	made := s.conn.newMadeMachines()
	err := s.conn.transactAt(ctx, "transact", repeatableRead, func(ctx context.Context, tx *Tx) error {
		made := made
		s.queueGate(tx)
		if err := fn(model.New(newRecorder(tx, made))); err != nil {
			return err
		}
		tx.recomputeTouched()
		return nil
	})
	if err != nil {
		return fmt.Errorf("transact: %w", err)
	}
	return nil
}

// queueGate lets a transaction go on only if the session lives.
func (s *Session) queueGate(tx *Tx) {
	tx.queueChecked("Gate", gate, []any{s.UUID}, func(rows pgx.Rows) error {
		if !rows.Next() && rows.Err() == nil {
			return ErrSessionExpired
		}
		return nil
	})
}

func (s *Session) add(w *Work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.works[w.id] = w
}

func (s *Session) remove(w *Work) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.works, w.id)
}

// sleep waits, and returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
