// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
	driver "github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

// within fails the test when f takes longer than any step's timeout explains.
func within(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	patience := time.NewTimer(30 * time.Second)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		t.Fatal("has not ended")
	}
}

func short(d time.Duration) func(*driver.Config) {
	return func(c *driver.Config) {
		c.Timeouts = driver.Timeouts{Connect: d, CheckOwner: d, Upload: d, Start: d, ReadKey: d}
	}
}

// TestHangingHostsTimeOut: at whatever point a host falls silent, the step that
// waits for it ends by its own timeout. Goroutines are counted in TestMain.
func TestHangingHostsTimeOut(t *testing.T) {
	for at, doing := range map[string]string{
		"accept": "SSH handshake", "banner": "SSH handshake", "kex": "SSH handshake", "auth": "SSH handshake",
		"session": "first command", "exec": "first command", "sftp": "upload",
	} {
		t.Run(at, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, behaviour{hangAt: at})
			timeout := 300 * time.Millisecond
			if at == "sftp" { // what comes before must get there
				timeout = 3 * time.Second
			}
			d := newDriver(t, h, short(timeout))
			within(t, func() {
				_, err := d.StartAgent(t.Context(), newMachine(h), &providertest.Steps{})
				wantReason(t, err, provider.ReasonTimedOut, false)
				if err == nil || !strings.Contains(err.Error(), doing) || errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("error %v does not say that %s was not done, or looks like the caller's", err, doing)
				}
			})
		})
	}
}

// TestConnectionsThatStall cuts the answer of a good host after any number of
// bytes, without closing the connection: within the version, the key exchange,
// the login, a command, the upload.
func TestConnectionsThatStall(t *testing.T) {
	for _, n := range []int64{1, 20, 21, 200, 900, 1500, 1600, 1700, 1800, 2000, 2300, 2600, 3000, 4000, 6000} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, behaviour{})
			proxy := &host{released: make(chan struct{})}
			proxy.serve(t, func(conn net.Conn) { stall(conn, h.address, n, proxy.released) })
			m := newMachine(h)
			m.Address = proxy.address
			d := newDriver(t, h, short(500*time.Millisecond))
			within(t, func() {
				_, err := d.StartAgent(t.Context(), m, &providertest.Steps{})
				if err != nil { // the last ones may let everything through
					wantReason(t, err, provider.ReasonTimedOut, false)
				}
			})
		})
	}
}

// stall forwards everything to a host, and n bytes back.
func stall(client net.Conn, address string, n int64, released <-chan struct{}) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(server, client) })
	_, _ = io.CopyN(client, server, n)
	<-released
	_ = client.Close()
	_ = server.Close()
	wg.Wait()
}

// TestMachineEndsWhatHangs: where only the connection ends, a command may go on
// on the machine. It ends there by itself.
func TestMachineEndsWhatHangs(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{programs: map[string]string{"uname": "exec sleep 60"}})
	d := newDriver(t, h, short(time.Second))
	within(t, func() {
		_, err := d.StartAgent(t.Context(), newMachine(h), &providertest.Steps{})
		wantReason(t, err, provider.ReasonTimedOut, false)
		// The host's end waits for all that runs on it.
		h.close()
	})
}

// TestFloodsAreBounded: a host that prints without end is not believed, and does
// not fill the memory.
func TestFloodsAreBounded(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{programs: map[string]string{"uname": "head -c 20000000 /dev/zero; echo; echo x"}})
	within(t, func() {
		_, err := newDriver(t, h).StartAgent(t.Context(), newMachine(h), &providertest.Steps{})
		wantReason(t, err, provider.ReasonCommandFailed, false)
		if len(fmt.Sprint(err)) > 2000 {
			t.Errorf("error of %d bytes", len(fmt.Sprint(err)))
		}
	})
}

// TestTimeoutsDoNotCountTheCaller: a slow database is no slow machine.
func TestTimeoutsDoNotCountTheCaller(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{})
	const timeout = 3 * time.Second
	slow := time.NewTimer(timeout + 100*time.Millisecond)
	defer slow.Stop()
	s := &providertest.Steps{OnPin: func([]byte) error {
		<-slow.C
		return nil
	}}
	if _, err := newDriver(t, h, short(timeout)).StartAgent(t.Context(), newMachine(h), s); err != nil {
		t.Error(err)
	}
}
