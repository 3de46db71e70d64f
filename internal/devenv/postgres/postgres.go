// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package postgres runs a private PostgreSQL server for the demo, the benchmarks and the tests. It knows no Kubernetes.
//
// A server is a child of this process: it has its own data directory, a port of 127.0.0.1 and a password that nobody else
// knows, and it ends with this process, however that ends.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

const (
	statePrefix = "bmdb-postgres"
	superuser   = "bmdb"
	adminDB     = "postgres"

	// startAttempts bounds how often another port is tried when somebody takes the chosen one in between.
	startAttempts = 5
	// startTimeout is generous: after a crash the server replays its log before it answers.
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// Options configures a server. The zero value is what tests want.
type Options struct {
	// Durable makes commits survive a power cut (fsync), as benchmarks and the demo need. False makes everything faster
	// and still survives Kill and an immediate stop, because the operating system keeps what was written.
	Durable bool
	// MaxConnections is the server's limit. Zero means 200.
	MaxConnections int
	// Settings are further lines of postgresql.conf, values unquoted. They win over the defaults.
	Settings map[string]string
	// Dir is where the state directory is made. Empty means a directory for temporary files that the server's user can enter.
	Dir string
}

// StopMode is how a server is asked to end.
type StopMode int

const (
	// Fast ends connections, writes everything out and stops.
	Fast StopMode = iota
	// Immediate stops at once, without writing anything out: the next start recovers as after a crash.
	Immediate
)

func (m StopMode) signal() syscall.Signal {
	if m == Immediate {
		return syscall.SIGQUIT
	}
	return syscall.SIGINT
}

// Server is a PostgreSQL server with its data. Its methods are safe for concurrent use.
type Server struct {
	programs programs
	account  account
	state    *statedir.Dir
	password string
	port     int

	mu      sync.Mutex
	process *proc.Process // nil when stopped
}

// Start makes a database cluster and starts a server on it. It returns when the server answers; the caller ends it with
// Close. ctx bounds the start only. It fails with a hint on what to install when there is no PostgreSQL.
func Start(ctx context.Context, options Options) (*Server, error) {
	found, err := find()
	if err != nil {
		return nil, err
	}
	acct, err := serverAccount()
	if err != nil {
		return nil, err
	}
	parent, err := parentDir(options.Dir, acct)
	if err != nil {
		return nil, err
	}
	state, err := statedir.New(parent, statePrefix, nil)
	if err != nil {
		return nil, err
	}
	s := &Server{programs: found, account: acct, state: state, password: newPassword()}
	if err := s.create(ctx, options); err != nil {
		return nil, errors.Join(fmt.Errorf("start postgres: %w", err), s.Close())
	}
	return s, nil
}

func (s *Server) create(ctx context.Context, options Options) error {
	if err := s.initdb(ctx); err != nil {
		return err
	}
	var err error
	for range startAttempts {
		s.port, err = proc.FreePort()
		if err != nil {
			return err
		}
		if err = s.configure(options); err != nil {
			return err
		}
		if err = s.Run(ctx); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

// Run starts a server that was stopped or killed, on the same data, port and password, and returns when it answers.
// It does nothing when the server runs.
func (s *Server) Run(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	process, err := proc.Start(proc.Config{
		Path:       s.programs.postgres,
		Args:       []string{"-D", s.dataDir()},
		Env:        serverEnv(),
		Dir:        s.state.Path,
		Log:        s.LogFile(),
		Credential: s.account.credential(),
		// An immediate stop, which unlike SIGKILL removes shared memory.
		DeathSignal: syscall.SIGQUIT,
	})
	if err != nil {
		return err
	}
	if err := process.WaitReady(ctx, s.ping); err != nil {
		return errors.Join(err, stop(process, syscall.SIGQUIT))
	}
	s.process = process
	return nil
}

// Stop stops the server and keeps its data; Run starts it again. It does nothing when the server does not run. When ctx
// is done first, the server is killed and the error says so.
func (s *Server) Stop(ctx context.Context, mode StopMode) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return nil
	}
	process := s.process
	s.process = nil
	return process.Stop(ctx, mode.signal())
}

// Restart stops the server and starts it again on the same port.
func (s *Server) Restart(ctx context.Context, mode StopMode) error {
	if err := s.Stop(ctx, mode); err != nil {
		return err
	}
	return s.Run(ctx)
}

// Kill ends the server with SIGKILL, as the kernel does when memory runs out, and returns when its other processes, which
// notice and end by themselves, are gone too. Run starts it again.
func (s *Server) Kill() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.running() {
		return nil
	}
	process := s.process
	s.process = nil
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return errors.Join(process.Stop(ctx, syscall.SIGKILL), waitUnused(ctx, s.dataDir()))
}

// Close ends the server and removes its data. The server cannot be used afterwards.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	if s.running() {
		err = stop(s.process, syscall.SIGQUIT)
	}
	s.process = nil
	return errors.Join(err, s.state.Remove())
}

// Done is closed when the server that runs now ends, wanted or not. It is nil, which blocks for ever, when none runs.
func (s *Server) Done() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.process == nil {
		return nil
	}
	return s.process.Done()
}

// running is called with mu held.
func (s *Server) running() bool {
	if s.process == nil {
		return false
	}
	select {
	case <-s.process.Done():
		return false
	default:
		return true
	}
}

func stop(process *proc.Process, signal syscall.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return process.Stop(ctx, signal)
}

// URL is the connection string of a database over TCP, with the superuser's password.
func (s *Server) URL(database string) string {
	u := url.URL{
		Scheme:   "postgres",
		User:     url.UserPassword(superuser, s.password),
		Host:     s.Address(),
		Path:     "/" + database,
		RawQuery: "sslmode=disable",
	}
	return u.String()
}

// SocketURL is the connection string of a database over the Unix socket.
func (s *Server) SocketURL(database string) string {
	query := url.Values{"host": {s.socketDir()}, "port": {strconv.Itoa(s.port)}, "sslmode": {"disable"}}
	u := url.URL{Scheme: "postgres", User: url.UserPassword(superuser, s.password), Path: "/" + database, RawQuery: query.Encode()}
	return u.String()
}

// Address is the server's host and port.
func (s *Server) Address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// LogFile is the server's log, gone after Close.
func (s *Server) LogFile() string { return s.state.Join("server.log") }

// CreateDatabase makes an empty database and returns its URL. The name may be anything that PostgreSQL takes; one that is
// taken is an error.
func (s *Server) CreateDatabase(ctx context.Context, name string) (string, error) {
	conn, err := pgx.Connect(ctx, s.URL(adminDB))
	if err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	defer conn.Close(context.WithoutCancel(ctx)) //nolint:errcheck // the statement's result decides
	if _, err := conn.Exec(ctx, "CREATE DATABASE "+pgx.Identifier{name}.Sanitize()); err != nil {
		return "", fmt.Errorf("create database %s: %w", name, err)
	}
	return s.URL(name), nil
}

func (s *Server) ping(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.URL(adminDB))
	if err != nil {
		return err
	}
	return conn.Close(ctx)
}

func (s *Server) dataDir() string   { return s.state.Join("data") }
func (s *Server) socketDir() string { return s.state.Join("run") }

// parentDir chooses where the state goes: a directory that the server's user can enter.
func parentDir(wanted string, acct account) (string, error) {
	candidates := []string{os.TempDir(), "/tmp", "/var/tmp"}
	if wanted != "" {
		candidates = []string{wanted}
	}
	var reasons []error
	for _, dir := range candidates {
		if acct.self {
			return dir, nil
		}
		err := enterable(dir)
		if err == nil {
			return dir, nil
		}
		reasons = append(reasons, err)
	}
	return "", fmt.Errorf("choose a directory for postgres, which runs as %s: %w", acct.name, errors.Join(reasons...))
}

// enterable says whether any user may pass through a directory and its parents.
func enterable(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o001 == 0 {
			return &fs.PathError{Op: "enter", Path: dir, Err: syscall.EACCES}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}
