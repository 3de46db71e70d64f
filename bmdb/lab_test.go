// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// lab is a fresh database, a program that uses it, and a way past the library.
type lab struct {
	t    *testing.T
	url  string
	conn *bmdb.Connection
	db   *pgxpool.Pool
}

// patience bounds every wait of the tests. Nothing is expected to take that long.
const patience = 30 * time.Second

func newLab(t *testing.T, options ...func(*bmdb.Config)) *lab {
	t.Helper()
	url := bmdbtest.NewURL(t)
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	config.MaxConns = 4
	db, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(db.Close)
	// A lease that no test outlives, unless it says so.
	options = append([]func(*bmdb.Config){func(c *bmdb.Config) { c.Lease = time.Minute }}, options...)
	return &lab{t: t, url: url, conn: bmdbtest.Open(t, url, options...), db: db}
}

// another is one more program that uses the database.
func (l *lab) another(options ...func(*bmdb.Config)) *bmdb.Connection {
	l.t.Helper()
	options = append([]func(*bmdb.Config){func(c *bmdb.Config) { c.Lease = time.Minute }}, options...)
	return bmdbtest.Open(l.t, l.url, options...)
}

// session starts a session that does no chores.
func (l *lab) session(opts ...bmdb.SessionOption) *bmdb.Session {
	l.t.Helper()
	return start(l.t, l.conn, append(opts, bmdb.WithoutMaintenance())...)
}

func (l *lab) exec(sql string, args ...any) int64 {
	l.t.Helper()
	tag, err := l.db.Exec(l.t.Context(), sql, args...)
	if err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	return tag.RowsAffected()
}

func (l *lab) int(sql string, args ...any) int64 {
	l.t.Helper()
	var n int64
	if err := l.db.QueryRow(l.t.Context(), sql, args...).Scan(&n); err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// process registers a process as it is once it was filled in over an empty fleet.
func (l *lab) process(name, slot string, requires, forbids, sets, clears []string) {
	l.t.Helper()
	some := func(s []string) []string {
		if s == nil {
			return []string{}
		}
		return s
	}
	l.exec(`INSERT INTO processes (pool, process, slot, requires, forbids, sets, clears, destructive, convergent, indexed, generation, fill_pass)
		VALUES ('default', $1, $2, $3, $4, $5, $6, false, false, true, 1, 0)`, name, slot, some(requires), some(forbids), some(sets), some(clears))
}

// limit gives a provider of pool default a limit.
func (l *lab) limit(provider string, maximum int64) {
	l.t.Helper()
	id := "provider/default/" + provider
	l.exec("INSERT INTO limits (limit_id, maximum) VALUES ($1, $2)", id, maximum)
	l.exec("INSERT INTO limit_slots (limit_id, n, open) SELECT $1, n, true FROM generate_series(1, $2::bigint) AS s (n)", id, maximum)
}

// state returns the state of a work row; 0 if there is none.
func (l *lab) state(machine uuid.UUID, process model.Process) int64 {
	l.t.Helper()
	return l.int("SELECT COALESCE((SELECT state FROM work WHERE machine_id = $1 AND process = $2), 0)", machine, process)
}

const (
	idle    = 0
	waiting = 1
	ready   = 2
	claimed = 3
)

// end returns how a work ended, or "".
func (l *lab) end(work uuid.UUID) string {
	l.t.Helper()
	var event string
	if err := l.db.QueryRow(l.t.Context(), "SELECT COALESCE((SELECT event FROM work_history WHERE work_id = $1 AND phase = 1), '')", work).Scan(&event); err != nil {
		l.t.Fatal(err)
	}
	return event
}

// lock takes locks, by a statement, and holds them until release is called, which may be more than once.
func (l *lab) lock(sql string, args ...any) (release func()) {
	l.t.Helper()
	tx, err := l.db.Begin(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := tx.Exec(l.t.Context(), sql, args...); err != nil {
		l.t.Fatalf("%s: %v", sql, err)
	}
	release = sync.OnceFunc(func() {
		if err := tx.Rollback(context.WithoutCancel(l.t.Context())); err != nil {
			l.t.Error(err)
		}
	})
	l.t.Cleanup(release)
	return release
}

// batch starts works on machines of provider Equinix, for nobody's claim.
func batch(ctx context.Context, s *bmdb.Session, process model.Process, limit int, machines ...uuid.UUID) ([]*bmdb.Work, error) {
	return s.StartBatch(ctx, bmdb.StartRequest{Process: string(process), Pool: "default", Provider: string(model.ProviderEquinix), Candidates: machines, Limit: limit})
}

// work starts one work, and fails the test if it cannot.
func (l *lab) work(s *bmdb.Session, process model.Process, machine uuid.UUID) *bmdb.Work {
	l.t.Helper()
	w, err := s.Work(l.t.Context(), process, constantly(machine))
	if err != nil {
		l.t.Fatalf("start %s: %v", process, err)
	}
	return w
}

// expire makes a session's lease have run out long ago.
func (l *lab) expire(session uuid.UUID) {
	l.t.Helper()
	if l.exec("UPDATE session_leases SET deadline = clock_timestamp() - interval '1 hour' WHERE session_id = $1", session) != 1 {
		l.t.Fatalf("session %s has no lease", session)
	}
}

// reap lets a program end everything whose lease has run out.
func (l *lab) reap(c *bmdb.Connection) {
	l.t.Helper()
	chores := bmdb.NewChores(c)
	for range 2 {
		if err := chores.Reap(l.t.Context()); err != nil {
			l.t.Fatalf("reap: %v", err)
		}
		chores.Watch()
	}
}

// eventually polls until a condition is true.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-deadline:
			t.Fatalf("timed out waiting: %s", what)
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// done waits for a channel.
func done[T any](t *testing.T, what string, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("timed out waiting: %s", what)
		panic("unreachable")
	}
}

// gates is a BeforeStatement hook that stops one transaction before one of its statements.
type gates struct {
	mu    sync.Mutex
	gates map[bmdb.Boundary]*gate
	seen  []bmdb.Boundary
}

// gate stops the first transaction that comes to it until it is opened; the error it is opened with ends the attempt.
type gate struct {
	reached chan struct{}
	open    chan error
}

func (g *gates) hook(ctx context.Context, at bmdb.Boundary) error {
	at.Index = 0
	g.mu.Lock()
	g.seen = append(g.seen, at)
	stop := g.gates[at]
	delete(g.gates, at)
	g.mu.Unlock()
	if stop == nil {
		return nil
	}
	close(stop.reached)
	select {
	case err := <-stop.open:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// at makes a gate before the next statement of this name in a transaction of this operation.
func (g *gates) at(operation, statement string) *gate {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gates == nil {
		g.gates = map[bmdb.Boundary]*gate{}
	}
	stop := &gate{reached: make(chan struct{}), open: make(chan error, 1)}
	g.gates[bmdb.Boundary{Operation: operation, Statement: statement}] = stop
	return stop
}

func (g *gates) config(c *bmdb.Config) { c.BeforeStatement = g.hook }

// blocked tells whether a program of this component name waits for a lock in the database.
func (l *lab) blocked(component string) bool { return l.waiting(component) > 0 }

// waiting is how many of its connections wait for one.
func (l *lab) waiting(component string) int64 {
	l.t.Helper()
	return l.int("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = $1 AND wait_event_type = 'Lock'", "bmdb "+component)
}

// beat lets a session beat. What one beat cannot do because of an error that passes, the next one does.
func beat(ctx context.Context, s *bmdb.Session) (err error) {
	const most = 10
	for range most {
		if err = s.Beat(ctx); err == nil || errors.Is(err, bmdb.ErrSessionExpired) {
			return err
		}
	}
	return err
}

func named(component string) func(*bmdb.Config) {
	return func(c *bmdb.Config) { c.ComponentName = component }
}

// retries tells that a transaction is tried again.
type retries struct {
	at chan string // gets the code of each, if there is room
}

func newRetries() *retries { return &retries{at: make(chan string, 1)} }

func (r *retries) SessionStarted()                         {}
func (r *retries) SessionEnded(string)                     {}
func (r *retries) Beat(bool, time.Duration)                {}
func (r *retries) WorkStarted(string)                      {}
func (r *retries) WorkEnded(string, string, time.Duration) {}
func (r *retries) WorkTakenOver(string)                    {}

// TransactionRetried implements bmdb.Observer.
func (r *retries) TransactionRetried(_, code string) {
	select {
	case r.at <- code:
	default:
	}
}

// errInjected is what gates of tests are opened with to end an attempt.
var errInjected = errors.New("injected by the test")

// hold keeps everybody from a machine of pool default.
func hold(ctx context.Context, conn *bmdb.Connection, name string, machine uuid.UUID) error {
	return conn.PlaceHold(ctx, bmdb.Hold{Pool: "default", Name: name, Actor: "test"}, []uuid.UUID{machine})
}
