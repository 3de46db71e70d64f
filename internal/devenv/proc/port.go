// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package proc

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports below the kernel's range for outgoing connections: a server that is restarted finds its port still free, where
// one from that range may meanwhile be the near end of somebody's connection.
const (
	firstPort = 20000
	lastPort  = 32000
)

// FreePort returns a TCP port of 127.0.0.1 that nobody listens on now. Somebody else may take it before the caller does:
// a caller whose server ends at once tries again with another.
func FreePort() (int, error) {
	for range 100 {
		port := firstPort + rand.IntN(lastPort-firstPort)
		listener, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := listener.Close(); err != nil {
			return 0, fmt.Errorf("close probe of port %d: %w", port, err)
		}
		return port, nil
	}
	return 0, fmt.Errorf("find a free port of 127.0.0.1 between %d and %d: all that were tried are taken", firstPort, lastPort)
}
