// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Command bmdb-operator is the Kubernetes operator of the Bare Metal Database.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// version is set by the linker.
var version = "development"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	err := newCommand(os.Stdout, os.Getenv).ExecuteContext(ctx)
	stop()
	if err != nil {
		if reported := (reportedError{}); !errors.As(err, &reported) {
			fmt.Fprintln(os.Stderr, "bmdb-operator:", err)
		}
		os.Exit(1)
	}
}
