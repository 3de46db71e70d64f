// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
)

const (
	defaultMaxConnections = 200
	initdbTimeout         = 2 * time.Minute
	// maxSocketPath is what sun_path holds, without its final zero.
	maxSocketPath = 107
)

func newPassword() string { return rand.Text() }

// initdb makes the data directory, with password authentication for everybody.
func (s *Server) initdb(ctx context.Context) error {
	if path := s.state.Join("run", ".s.PGSQL.65535"); len(path) > maxSocketPath {
		return fmt.Errorf("make socket %s: a path of %d bytes is too long, %d are allowed", path, len(path), maxSocketPath)
	}
	for _, dir := range []string{s.dataDir(), s.socketDir()} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := s.account.own(dir); err != nil {
			return err
		}
	}
	passwordFile := s.state.Join("password")
	if err := os.WriteFile(passwordFile, []byte(s.password), 0o600); err != nil {
		return fmt.Errorf("write password file: %w", err)
	}
	if err := s.account.own(passwordFile); err != nil {
		return err
	}
	process, err := proc.Start(proc.Config{
		Path: s.programs.initdb,
		Args: []string{
			"--pgdata=" + s.dataDir(), "--username=" + superuser, "--pwfile=" + passwordFile,
			"--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions",
		},
		Env:        serverEnv(),
		Dir:        s.state.Path,
		Log:        s.state.Join("initdb.log"),
		Credential: s.account.credential(),
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, initdbTimeout)
	defer cancel()
	if err := process.WaitExit(ctx); err != nil {
		return fmt.Errorf("make database cluster: %w", err)
	}
	return os.Remove(passwordFile)
}

// configure writes postgresql.conf. The server has no other configuration.
func (s *Server) configure(options Options) error {
	connections := options.MaxConnections
	if connections == 0 {
		connections = defaultMaxConnections
	}
	settings := map[string]string{
		"listen_addresses":        "127.0.0.1",
		"port":                    strconv.Itoa(s.port),
		"unix_socket_directories": s.socketDir(),
		"max_connections":         strconv.Itoa(connections),
		"password_encryption":     "scram-sha-256",
		"timezone":                "UTC",
		"log_timezone":            "UTC",
		"log_line_prefix":         "%m [%p] %d ",
		"logging_collector":       "off",
		"shared_buffers":          "128MB",
		// A temporary server with many small databases: the background work of a big one only costs.
		"autovacuum_naptime": "15s",
	}
	if !options.Durable {
		// Commits stay synchronous: each is written to the operating system before it is acknowledged, so that nothing
		// acknowledged is lost when the server is killed.
		maps.Copy(settings, map[string]string{
			"fsync":              "off",
			"full_page_writes":   "off",
			"wal_level":          "minimal",
			"max_wal_senders":    "0",
			"checkpoint_timeout": "1h",
			"max_wal_size":       "4GB",
		})
	}
	maps.Copy(settings, options.Settings)

	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&text, "%s = '%s'\n", name, strings.ReplaceAll(settings[name], "'", "''"))
	}
	path := s.state.Join("data", "postgresql.conf")
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return s.account.own(path)
}

// waitUnused waits until no process works in a data directory, which is where all of a server's processes do. As long as
// one does, another server refuses to start there.
func waitUnused(ctx context.Context, dataDir string) error {
	const interval = 10 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		processes, err := filepath.Glob("/proc/[0-9]*/cwd")
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(processes, func(link string) bool {
			cwd, err := os.Readlink(link)
			return err == nil && cwd == dataDir
		}) {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until no process is left in %s: %w", dataDir, ctx.Err())
		}
	}
}

// serverEnv keeps the caller's PG* variables and locale from changing the server.
func serverEnv() []string { return []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"} }
