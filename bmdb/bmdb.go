// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"

	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
)

// BMDB is how a program names the Bare Metal Database that it uses. The zero value needs at least Config.DatabaseURL.
type BMDB struct {
	Config
}

// Config says which database is used, and how. Zero values mean what the fields say.
type Config struct {
	// DatabaseURL is the connection string, as pgx takes it. Required.
	DatabaseURL string
	// ComponentName and RuntimeInfo say in sessions and history who works here, for people: a program, and its pod, host and
	// version. Empty is allowed.
	ComponentName string
	RuntimeInfo   string
	// Cluster is the Kubernetes cluster whose objects this program shows, by its ID; empty for programs outside of any.
	Cluster string
	// Origin tells apart API servers that call themselves Cluster, one after another: a view whose object was in one of them is not ended because
	// another has no such object. Empty: not known; any view of Cluster is ended.
	Origin string
	// ClaimsOnly says that the program starts work for claims alone; other starts are refused. Then a limit that is introduced while none
	// is owned is in force at once.
	ClaimsOnly bool
	// Pools are those whose claims the program's sessions take up. Empty: all.
	Pools []string
	// Pool is the pool of the machines that Queries.NewMachine makes. Default: "default".
	Pool string
	// Lease is for how long a session lives without a beat; everything else about liveness follows from it. Default 60 s,
	// and not less than one second.
	Lease time.Duration
	// MaxConnections bounds the work pool. Sessions beat over a connection of their own. Default 8.
	MaxConnections int32
	// History is for how long history, audit and ended sessions are kept. Nothing is decided from them. Default 90 days.
	History time.Duration
	// Logger gets one line per change of state. Default: nothing is logged.
	Logger *slog.Logger
	// Observer is told what happens, for metrics. Default: nobody is. It is called from many goroutines and must not block.
	Observer Observer
	// BeforeStatement, for tests of faults and interleavings, is called before each statement of each transaction, which are then
	// sent one by one. An error from it ends the attempt.
	BeforeStatement func(ctx context.Context, at Boundary) error
	// ForceIsolation, for tests, is an isolation level for all transactions. Default: what each of them asks for.
	ForceIsolation string
}

const (
	defaultPool    = "default"
	defaultLease   = 60 * time.Second
	minimumLease   = time.Second
	defaultMaxConn = 8
	defaultHistory = 90 * 24 * time.Hour
)

func (c Config) withDefaults() (Config, error) {
	if c.DatabaseURL == "" {
		return c, errors.New("DatabaseURL is empty: set it to the connection string of the database, as in postgresql://user@host:26257/bmdb")
	}
	if c.Pool == "" {
		c.Pool = defaultPool
	}
	if len(c.Pools) == 0 {
		c.Pools = nil // NULL in statements
	}
	if c.Lease == 0 {
		c.Lease = defaultLease
	}
	if c.Lease < minimumLease {
		return c, fmt.Errorf("lease of %s is too short: at least %s", c.Lease, minimumLease)
	}
	if c.MaxConnections == 0 {
		c.MaxConnections = defaultMaxConn
	}
	if c.History == 0 {
		c.History = defaultHistory
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Observer == nil {
		c.Observer = nobody{}
	}
	return c, nil
}

// Connection is a pool of connections to the database. It is safe for concurrent use; one per program is enough.
type Connection struct {
	config   Config
	dialect  dialect
	lease    lease
	pool     *pgxpool.Pool // work
	beats    *pgxpool.Pool // beats, so that busy workers cannot kill their own session
	log      *slog.Logger
	observer Observer
	identity DatabaseIdentity
	settle   time.Duration // bounds a statement of any program; see longestStatement
	pending  pendingCursors
	newcomer chan struct{} // holds a value for each registration of a new machine that is under way

	committed atomic.Int64 // boottime of the last commit over the work pool, or of what proved as much
}

// DatabaseIdentity says which database this is.
type DatabaseIdentity struct {
	// ID was made with the database and never changes.
	ID uuid.UUID
	// Incarnation is raised by hand after the database was restored from an older copy.
	Incarnation int64
}

// Open connects to the database. With migrate it first brings the schema up to date; otherwise, or if another version of the program
// migrated further, it refuses a schema that is older than what this version works with, or newer than what it knows unless the schema says
// that it may work with it (ErrSchemaTooOld, ErrSchemaTooNew). The caller closes the connection.
func (b *BMDB) Open(migrate bool) (*Connection, error) {
	config, err := b.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTimeout)
	defer cancel()
	if migrate {
		if err := Migrate(ctx, config.DatabaseURL, config.Logger); err != nil {
			return nil, err
		}
	}
	c := &Connection{config: config, log: config.Logger, observer: config.Observer, settle: longestStatement, pending: pendingCursors{seen: make(chan struct{}, 1)}}
	c.newcomer = make(chan struct{}, max(1, config.MaxConnections/8))
	if err := c.connect(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("open database: %w", err)
	}
	return c, nil
}

const openTimeout = 2 * time.Minute

func (c *Connection) connect(ctx context.Context) error {
	status, err := SchemaStatus(ctx, c.config.DatabaseURL)
	if err != nil {
		return err
	}
	if err := status.compatible(migrations.Minimum, migrations.Latest); err != nil {
		return err
	}
	c.lease = lease{length: c.config.Lease}
	if c.pool, err = c.newPool(ctx, c.config.MaxConnections, true); err != nil {
		return err
	}
	if c.beats, err = c.newPool(ctx, 2, false); err != nil {
		return err
	}
	err = c.again(ctx, "ReadIdentity", func() error {
		return c.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
			c.dialect = dialectOf(conn.Conn())
			return conn.QueryRow(ctx, sqlReadIdentity).Scan(&c.identity.ID, &c.identity.Incarnation)
		})
	})
	if err != nil {
		return fmt.Errorf("read the database's identity: %w", err)
	}
	c.lease.offset = c.dialect.clockOffset()
	return nil
}

func (c *Connection) newPool(ctx context.Context, size int32, durable bool) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(c.config.DatabaseURL)
	if err != nil {
		return nil, fmt.Errorf("parse database URL: %w", redactURL(err))
	}
	config.MaxConns = size
	config.MaxConnLifetime = 20 * time.Minute
	config.MaxConnLifetimeJitter = 2 * time.Minute
	config.ShouldPing = stale
	config.ConnConfig.ConnectTimeout = 5 * time.Second
	params := config.ConnConfig.RuntimeParams
	params["application_name"] = "bmdb " + c.config.ComponentName
	params["statement_timeout"] = "10000"
	params["lock_timeout"] = "5000"
	params["idle_in_transaction_session_timeout"] = fmt.Sprint(max(c.lease.idle(), time.Second).Milliseconds())
	config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
		pgxuuid.Register(conn.TypeMap()) // else they travel as text, each by way of database/sql
		return dialectOf(conn).prepare(ctx, conn, durable)
	}
	return pgxpool.NewWithConfig(ctx, config)
}

// pingAfter is longer than connections are idle of a program that has nothing to do.
const pingAfter = 15 * time.Second

// stale tells whether a connection has to prove itself with a ping before it is used, which costs a round trip. One that was closed at the other end
// shows without.
func stale(_ context.Context, p pgxpool.ShouldPingParams) bool {
	switch {
	case p.IdleDuration > pingAfter:
		return true
	case p.IdleDuration > time.Second:
		err := p.Conn.PgConn().CheckConn() //nolint:staticcheck // Ping is what it saves.
		return err != nil || p.Conn.IsClosed()
	}
	return false
}

// redactURL keeps a password in a connection string out of the error that says it cannot be parsed.
func redactURL(err error) error {
	return fmt.Errorf("it is not a connection string that pgx understands (%T)", err)
}

// Close ends all connections. Close sessions first.
func (c *Connection) Close() {
	if c.pool != nil {
		c.pool.Close()
	}
	if c.beats != nil {
		c.beats.Close()
	}
}

// Identity returns which database this is, as it was when the connection was opened.
func (c *Connection) Identity() DatabaseIdentity { return c.identity }

// Ping tells whether the database answers.
func (c *Connection) Ping(ctx context.Context) error { return c.pool.Ping(ctx) }
