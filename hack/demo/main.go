// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Command demo shows the main job of BMDB Operator on this machine: a WorkClaim is applied, two operators work on six SSH machines, one
// operator is killed in the middle, and the database sees to it that each machine's work is finished exactly once. It starts all that
// it needs, and leaves nothing running. KEEP=1 in the environment leaves everything up until it is interrupted.
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
	if err := run(ctx, keep); err != nil {
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, keep bool) (err error) {
	began := time.Now()
	story, cancel := context.WithTimeout(ctx, limit)
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
	if err := env.start(story); err != nil {
		return err
	}
	if err := tell(story, env); err != nil {
		return err
	}
	fmt.Printf("\nDone in %d s: 6/6 machines, each finished exactly once.\n", int(time.Since(began).Seconds()))
	if keep {
		env.printNext()
		<-ctx.Done()
		fmt.Println("\nStopping.")
	}
	return nil
}
