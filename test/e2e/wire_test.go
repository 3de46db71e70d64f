// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
)

// wire stands between operators and the database, and counts the statements that are sent over it.
type wire struct {
	url    string
	target string
	wg     sync.WaitGroup

	mu     sync.Mutex
	conns  map[net.Conn]bool
	counts map[string]int
}

// newWire returns a wire to a database. Connections over it speak no TLS.
func newWire(t *testing.T, database string) *wire {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{target: u.Host, conns: map[net.Conn]bool{}, counts: map[string]int{}}
	u.Host = listener.Addr().String()
	query := u.Query()
	query.Set("sslmode", "disable")
	u.RawQuery = query.Encode()
	w.url = u.String()
	w.wg.Go(func() { w.accept(listener) })
	t.Cleanup(func() {
		listener.Close()
		w.mu.Lock()
		for c := range w.conns {
			c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

func (w *wire) accept(listener net.Listener) {
	for {
		client, err := listener.Accept()
		if err != nil {
			return
		}
		server, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", w.target)
		if err != nil {
			client.Close()
			continue
		}
		w.mu.Lock()
		w.conns[client], w.conns[server] = true, true
		w.mu.Unlock()
		for _, pass := range []func(){
			func() { w.requests(client, server) },
			func() { _, _ = io.Copy(client, server) },
		} {
			w.wg.Go(func() {
				pass()
				client.Close()
				server.Close()
			})
		}
	}
}

// requests passes on what an operator sends, message by message, until either end is closed.
func (w *wire) requests(client io.Reader, server io.Writer) {
	prepared := map[string]string{} // what the names of statements stand for
	bound := ""
	for first := true; ; first = false {
		kind, body, err := passMessage(client, server, !first)
		if err != nil {
			return
		}
		name, rest := cutZero(body)
		switch kind {
		case 'P': // Parse: name, text
			prepared[name], _ = cutZero(rest)
		case 'B': // Bind: portal, statement
			name, _ = cutZero(rest)
			bound = prepared[name]
		case 'E': // Execute
			w.count(bound)
		case 'Q': // a text without parameters
			w.count(name)
		}
	}
}

// passMessage passes one message on: a kind, but for the first of a connection, and a length that counts itself.
func passMessage(from io.Reader, to io.Writer, kinded bool) (kind byte, body []byte, err error) {
	head := make([]byte, 4, 5)
	if kinded {
		head = append(head, 0)
	}
	if _, err := io.ReadFull(from, head); err != nil {
		return 0, nil, err
	}
	if kinded {
		kind = head[0]
	}
	message := make([]byte, len(head)-4+int(binary.BigEndian.Uint32(head[len(head)-4:])))
	copy(message, head)
	if _, err := io.ReadFull(from, message[len(head):]); err != nil {
		return 0, nil, err
	}
	_, err = to.Write(message)
	return kind, message[len(head):], err
}

func cutZero(b []byte) (string, []byte) {
	s, rest, _ := bytes.Cut(b, []byte{0})
	return string(s), rest
}

func (w *wire) count(sql string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[sql]++
}

// take returns how often each statement was sent since it was last called.
func (w *wire) take() map[string]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	counts := w.counts
	w.counts = map[string]int{}
	return counts
}

// sum counts all statements, and lists them.
func sum(counts map[string]int) (n int, list string) {
	for _, sql := range slices.SortedFunc(maps.Keys(counts), func(a, b string) int { return cmp.Compare(counts[b], counts[a]) }) {
		n += counts[sql]
		words := strings.Join(strings.Fields(sql), " ")
		list += fmt.Sprintf("\n%4d  %.120s", counts[sql], words)
	}
	return n, list
}
