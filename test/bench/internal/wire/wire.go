// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package wire counts what programs say to a database: it stands between the two and reads along. It adds a hop, so nothing is timed
// over it.
package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
)

// Counter is a proxy before a database. It is safe for concurrent use. The caller closes it.
type Counter struct {
	url, target string
	listener    net.Listener
	wg          sync.WaitGroup

	trips, statements atomic.Int64

	mu    sync.Mutex
	conns map[net.Conn]bool
	texts map[string]int64 // statements by their text
}

// Counts is what was said so far, or between two moments.
type Counts struct {
	// RoundTrips are the times that a program waited for the database.
	RoundTrips int64
	// Statements are what it asked to be executed, BEGIN and COMMIT not counted.
	Statements int64
}

// Sub is what was said since a moment.
func (c Counts) Sub(since Counts) Counts {
	return Counts{c.RoundTrips - since.RoundTrips, c.Statements - since.Statements}
}

// ErrTLS says that a database cannot be listened to because it insists on TLS.
var ErrTLS = errors.New("cannot read along: the database's URL asks for TLS")

// Listen returns a proxy before the database of a URL of the form postgresql://user@host:port/name. ErrTLS: it asks for TLS.
func Listen(ctx context.Context, databaseURL string) (*Counter, error) {
	u, err := url.Parse(databaseURL)
	if err != nil {
		return nil, errors.New("listen before the database: its URL cannot be parsed") // the error would show the password
	}
	query := u.Query()
	switch query.Get("sslmode") {
	case "require", "verify-ca", "verify-full":
		return nil, ErrTLS
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen before the database: %w", err)
	}
	c := &Counter{target: u.Host, listener: listener, conns: map[net.Conn]bool{}, texts: map[string]int64{}}
	u.Host = listener.Addr().String()
	query.Set("sslmode", "disable")
	u.RawQuery = query.Encode()
	c.url = u.String()
	c.wg.Go(c.accept)
	return c, nil
}

// URL leads to the database over the proxy.
func (c *Counter) URL() string { return c.url }

// Counts is what was said so far.
func (c *Counter) Counts() Counts {
	return Counts{RoundTrips: c.trips.Load(), Statements: c.statements.Load()}
}

// Matching is how many statements so far have a text that contains part.
func (c *Counter) Matching(part string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var n int64
	for text, count := range c.texts {
		if strings.Contains(text, part) {
			n += count
		}
	}
	return n
}

// Texts are the statements so far by their text.
func (c *Counter) Texts() map[string]int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make(map[string]int64, len(c.texts))
	for text, count := range c.texts {
		out[text] = count
	}
	return out
}

// Close ends all connections.
func (c *Counter) Close() {
	c.listener.Close()
	c.mu.Lock()
	for conn := range c.conns {
		conn.Close()
	}
	c.mu.Unlock()
	c.wg.Wait()
}

func (c *Counter) accept() {
	for {
		client, err := c.listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", c.target)
		if err != nil {
			client.Close()
			continue
		}
		c.mu.Lock()
		c.conns[client], c.conns[server] = true, true
		c.mu.Unlock()
		l := &link{counter: c, client: client, server: server, prepared: map[string]string{}}
		c.wg.Go(func() { l.end(l.requests()) })
		c.wg.Go(func() { l.end(l.answers()) })
	}
}

// link is one connection.
type link struct {
	counter        *Counter
	client, server net.Conn
	prepared       map[string]string // text by name
}

func (l *link) end(error) {
	l.client.Close()
	l.server.Close()
	l.counter.mu.Lock()
	defer l.counter.mu.Unlock()
	delete(l.counter.conns, l.client)
	delete(l.counter.conns, l.server)
}

func (l *link) answers() error {
	_, err := io.Copy(l.client, l.server)
	return err
}

// requests passes on what the program sends, up to the end of a round trip at a time.
func (l *link) requests() error {
	startup, err := readFrame(l.client, false)
	if err != nil {
		return err
	}
	if _, err := l.server.Write(startup); err != nil {
		return err
	}
	var pending []byte
	bound := ""
	for {
		frame, err := readFrame(l.client, true)
		if err != nil {
			return err
		}
		pending = append(pending, frame...)
		body := frame[5:]
		switch frame[0] {
		case 'P': // Parse: name, text
			name, rest := cstring(body)
			l.prepared[name], _ = cstring(rest)
			continue
		case 'B': // Bind: portal, name
			_, rest := cstring(body)
			name, _ := cstring(rest)
			bound = l.prepared[name]
			continue
		case 'E': // Execute
			l.counter.executed(bound)
			continue
		case 'D', 'C':
			continue
		case 'S': // Sync
			l.counter.trips.Add(1)
		case 'Q': // simple query
			text, _ := cstring(body)
			l.counter.executed(text)
			l.counter.trips.Add(1)
		}
		if _, err := l.server.Write(pending); err != nil {
			return err
		}
		pending = nil
	}
}

func (c *Counter) executed(text string) {
	if text == "COMMIT" || text == "ROLLBACK" || strings.HasPrefix(text, "BEGIN") {
		return
	}
	c.statements.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.texts[text]++
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
	const longest = 1 << 30
	if length < 0 || length > longest {
		return nil, fmt.Errorf("message of %d bytes", length)
	}
	frame := make([]byte, len(head)+length)
	copy(frame, head)
	_, err := io.ReadFull(r, frame[len(head):])
	return frame, err
}

func cstring(b []byte) (text string, rest []byte) {
	s, rest, _ := bytes.Cut(b, []byte{0})
	return string(s), rest
}
