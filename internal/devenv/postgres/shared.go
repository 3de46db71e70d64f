// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"context"
	"os"
	"sync"
)

// URLEnv names the environment variable with the URL of a server that tests may make databases on. `make test` starts one
// for its whole run and sets it.
const URLEnv = "BMDB_TEST_DATABASE_URL"

// sharedServer is the server of this process's tests. It is process-wide on purpose: tests of one process share a server
// and have a database each.
var sharedServer struct {
	sync.Mutex
	server *Server
}

// Shared returns the URL of a server for tests: the one that BMDB_TEST_DATABASE_URL names, else one that this process
// starts at the first call and all later calls share. The URL is of a database that exists already and whose user may
// create others; callers make their own beside it. Such a server and its data go away with the process; a TestMain may call
// CloseShared to see it end before. Safe for concurrent use; a start that failed is tried again by the next call.
func Shared(ctx context.Context) (string, error) {
	if url := os.Getenv(URLEnv); url != "" {
		return url, nil
	}
	sharedServer.Lock()
	defer sharedServer.Unlock()
	if sharedServer.server == nil {
		server, err := Start(ctx, Options{})
		if err != nil {
			return "", err
		}
		sharedServer.server = server
	}
	return sharedServer.server.URL(adminDB), nil
}

// CloseShared ends the server that Shared started in this process, if any.
func CloseShared() error {
	sharedServer.Lock()
	defer sharedServer.Unlock()
	if sharedServer.server == nil {
		return nil
	}
	err := sharedServer.server.Close()
	sharedServer.server = nil
	return err
}
