// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo shows the main job of BMDB Operator on this machine: a WorkClaim is applied, two operators work on six SSH machines, one
// operator is killed in the middle, and the database sees to it that each machine's work is finished exactly once. With CLUSTERS=2 in
// the environment there are two clusters with two operators each and one database: one manages and the other shows, a limit holds across both, and the
// first cluster is destroyed in the middle. It starts all that it needs, and leaves nothing running. KEEP=1 in the environment leaves everything up
// until it is interrupted.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// limit is for the whole run. Nothing of it should take half as long.
const limit = 5 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	keep, _ := strconv.ParseBool(os.Getenv("KEEP"))
	tell, err := storyFor(os.Getenv("CLUSTERS"))
	if err == nil {
		err = run(ctx, tell, keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// story starts what it needs, shows what happens, and returns what was seen in the end: an error unless that is as it must be.
type story func(ctx context.Context, e *environment) (outcome string, err error)

func storyFor(clusters string) (story, error) {
	switch clusters {
	case "", "1":
		return tellMainJob, nil
	case "2":
		return tellTwoClusters, nil
	default:
		return nil, fmt.Errorf("CLUSTERS is %q, there is a story for 1 and for 2", clusters)
	}
}

func run(ctx context.Context, tell story, keep bool) (err error) {
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	env, err := newEnvironment()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			env.printLogs()
		}
		if stopErr := env.stop(); stopErr != nil && err == nil {
			err = fmt.Errorf("stop: %w", stopErr)
		}
	}()
	outcome, err := tell(bounded, env)
	if err != nil {
		return err
	}
	fmt.Printf("\nDone in %d s: %s.\n", int(time.Since(began).Seconds()), outcome)
	if keep {
		env.printNext()
		<-ctx.Done()
		fmt.Println("\nStopping.")
	}
	return nil
}
