// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Testenv runs a command with a database server for tests:
//
//	go run ./hack/testenv go test ./...
//
// The server is for this run alone: it starts before the command and is gone after it. The command finds it by
// BMDB_TEST_DATABASE_URL; when that is set already, no server is started.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
)

const (
	// maxConnections is enough for the packages that are tested at once, each with many tests at once.
	maxConnections = 500
	exitUsage      = 2
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: testenv COMMAND [ARG...]")
		os.Exit(exitUsage)
	}
	err := run(os.Args[1], os.Args[2:]...)
	var failed *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &failed) && failed.ExitCode() > 0:
		os.Exit(failed.ExitCode())
	default:
		fmt.Fprintln(os.Stderr, "testenv:", err)
		os.Exit(1)
	}
}

func run(name string, args ...string) (err error) {
	// The command gets the terminal's interrupts too, and ends by itself; the server must outlast it.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	env := os.Environ()
	if os.Getenv(postgres.URLEnv) == "" {
		server, err := postgres.Start(ctx, postgres.Options{MaxConnections: maxConnections})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, server.Close()) }()
		env = append(env, postgres.URLEnv+"="+server.URL("postgres"))
	}
	command := exec.CommandContext(ctx, name, args...)
	command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
	command.Env, command.Stdin, command.Stdout, command.Stderr = env, os.Stdin, os.Stdout, os.Stderr
	return command.Run()
}
