// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
)

// cut is where a proxy breaks a connection.
type cut int32

const (
	never        cut = iota
	beforeCommit     // the COMMIT never arrives
	afterCommit      // the COMMIT is carried out, and nobody hears of it
)

// proxy stands between a program and the database, frame by frame. It counts round trips, and breaks the connection over which the next
// COMMIT is sent.
type proxy struct {
	url      string
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	next  atomic.Int32 // cut
	syncs atomic.Int64 // round trips
	cuts  atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
}

// newProxy returns a proxy before a database. Connections over it speak no TLS.
func newProxy(t *testing.T, databaseURL string) *proxy {
	t.Helper()
	u, err := url.Parse(databaseURL)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: u.Host, conns: map[net.Conn]bool{}}
	u.Host = listener.Addr().String()
	query := u.Query()
	query.Set("sslmode", "disable")
	u.RawQuery = query.Encode()
	p.url = u.String()
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		listener.Close()
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		c := &proxied{proxy: p, client: client, server: server, commits: map[string]bool{}}
		p.mu.Lock()
		p.conns[client], p.conns[server] = true, true
		p.mu.Unlock()
		p.wg.Go(func() { c.close(c.requests()) })
		p.wg.Go(func() { c.close(c.answers()) })
	}
}

// proxied is one connection.
type proxied struct {
	*proxy
	client, server net.Conn
	commits        map[string]bool // prepared statements that are a COMMIT
	swallow        atomic.Bool     // the answer to what was sent last goes nowhere, and is the end
}

var errCut = errors.New("cut")

func (c *proxied) close(error) {
	c.client.Close()
	c.server.Close()
}

// requests passes on what the program sends, a batch up to its Sync at a time.
func (c *proxied) requests() error {
	startup, err := readFrame(c.client, false)
	if err != nil {
		return err
	}
	if _, err := c.server.Write(startup); err != nil {
		return err
	}
	var pending []byte
	commit := false
	for {
		frame, err := readFrame(c.client, true)
		if err != nil {
			return err
		}
		pending = append(pending, frame...)
		body := frame[5:]
		switch frame[0] {
		case 'P': // Parse: name, query
			name, rest := cstring(body)
			query, _ := cstring(rest)
			c.commits[name] = query == "COMMIT"
			continue
		case 'B': // Bind: portal, statement
			_, rest := cstring(body)
			name, _ := cstring(rest)
			commit = commit || c.commits[name]
			continue
		case 'D', 'E', 'C':
			continue
		case 'S':
			c.syncs.Add(1)
		case 'Q':
			query, _ := cstring(body)
			commit = query == "COMMIT"
			c.syncs.Add(1)
		}
		if commit {
			switch cut(c.next.Swap(int32(never))) {
			case beforeCommit:
				c.cuts.Add(1)
				return errCut
			case afterCommit:
				c.cuts.Add(1)
				c.swallow.Store(true)
			case never:
			}
		}
		if _, err := c.server.Write(pending); err != nil {
			return err
		}
		pending, commit = nil, false
	}
}

// answers passes on what the database sends.
func (c *proxied) answers() error {
	for {
		frame, err := readFrame(c.server, true)
		if err != nil {
			return err
		}
		if c.swallow.Load() {
			if frame[0] == 'Z' { // ReadyForQuery: it is done
				return errCut
			}
			continue
		}
		if _, err := c.client.Write(frame); err != nil {
			return err
		}
	}
}

// readFrame reads one message: a type, but for the first one, and a length that counts itself.
func readFrame(r io.Reader, typed bool) ([]byte, error) {
	head := make([]byte, 4, 5)
	if typed {
		head = append(head, 0)
	}
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	length := int(binary.BigEndian.Uint32(head[len(head)-4:])) - 4
	frame := make([]byte, len(head)+length)
	copy(frame, head)
	_, err := io.ReadFull(r, frame[len(head):])
	return frame, err
}

func cstring(b []byte) (string, []byte) {
	s, rest, _ := bytes.Cut(b, []byte{0})
	return string(s), rest
}
