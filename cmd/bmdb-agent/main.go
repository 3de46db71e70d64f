// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bmdb-agent runs on a machine of the fleet. See package agent.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/bmdb-dev/bmdb-operator/agent"
)

// version is set by the linker; the build's own is used where it is not.
var version string

const usage = `bmdb-agent proves that this machine lives and which one it is.

Usage:
  bmdb-agent [--state-dir DIR]                 start the agent: print its public key and facts about the
                                               machine as one line of JSON, and stay up until SIGTERM; where
                                               one runs already, print its line and end
  bmdb-agent report [--state-dir DIR] [--wait DURATION]
                                               print the line of the agent that runs
  bmdb-agent version                           print the version

Exit status: 0 success, 1 failure, 2 wrong usage, 3 no agent runs (report).

Flags:
`

const (
	exitFailure    = 1
	exitUsage      = 2
	exitNotRunning = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run is main without the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	command := ""
	if len(args) > 0 && (args[0] == "report" || args[0] == "version") {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("bmdb-agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		_, _ = fmt.Fprint(flags.Output(), usage)
		flags.PrintDefaults()
	}
	stateDir := flags.String("state-dir", agent.DefaultStateDir, "`directory` of the agent's key and lock")
	wait := flags.Duration("wait", 0, "report: how long to wait for an agent that is starting")
	for _, a := range args {
		if a == "--help" || a == "-help" || a == "-h" {
			flags.SetOutput(stdout)
		}
	}
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 {
		_, _ = fmt.Fprintf(stderr, "bmdb-agent: unknown argument %q; see --help\n", flags.Arg(0))
		return exitUsage
	}
	var err error
	switch command {
	case "version":
		_, err = fmt.Fprintf(stdout, "bmdb-agent %s (%s, %s/%s)\n", versionString(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	case "report":
		err = report(ctx, *stateDir, *wait, stdout)
	default:
		err = agent.Run(ctx, agent.Config{StateDir: *stateDir, Version: versionString(), Output: stdout})
	}
	if err == nil {
		return 0
	}
	_, _ = fmt.Fprintf(stderr, "bmdb-agent: %v\n", err)
	if errors.Is(err, agent.ErrNotRunning) {
		return exitNotRunning
	}
	return exitFailure
}

func report(ctx context.Context, stateDir string, wait time.Duration, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	r, err := agent.WaitRunning(ctx, stateDir)
	if err != nil {
		return err
	}
	b, err := r.Encode()
	if err != nil {
		return err
	}
	_, err = stdout.Write(b)
	return err
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
