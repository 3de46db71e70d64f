// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"net"
	"sync"
	"time"
)

// maxPipeline bounds the round trips that a program has under way on a connection; pgx has one or two.
const maxPipeline = 64

// conn is one connection. requests and answers have a goroutine each; what they share is the channel, and what end guards.
type conn struct {
	proxy          *Proxy
	id             int64
	owner          any
	client, server net.Conn
	fromClient     *bufio.Reader
	fromServer     *bufio.Reader
	statements     map[string]string // names of what is prepared, by the program's name for it
	trips          chan *sent
	over           chan struct{}
	ending         sync.Once
}

// sent is a round trip that the server works on.
type sent struct {
	trip   *Trip
	parses int // answers of these kinds that the program expects, where a statement was replaced
	binds  int
	broken bool   // a statement was replaced
	last   int    // where, in the answers, that of the last statement begins
	torn   func() // it ends with this: the connection's end follows
	tear   int    // answers of statements to wait for before that
}

func (c *conn) end() {
	c.ending.Do(func() {
		close(c.over)
		c.client.Close()
		c.server.Close()
	})
}

// batch is what the program has sent since the last Sync.
type batch struct {
	application string

	frames []frame
	ends   []int // index of the Execute of each statement
	starts []int // index of the first message of each statement
	names  []string
	parses []int // how many Parse and Bind there are before each statement
	binds  []int
	parsed int
	bound  int
}

// requests passes on what the program sends.
func (c *conn) requests() {
	first, err := readFrame(c.fromClient, false)
	if err != nil {
		return
	}
	application := applicationOf(first)
	if _, err := c.server.Write(first); err != nil {
		return
	}
	b := &batch{application: application}
	name, start := "", 0
	for {
		f, err := readFrame(c.fromClient, true)
		if err != nil {
			return
		}
		b.frames = append(b.frames, f)
		last := len(b.frames) - 1
		switch f.kind() {
		case 'P':
			prepared, rest := cstring(f.body())
			query, _ := cstring(rest)
			c.statements[prepared] = c.proxy.options.Catalog.Name(query)
			if prepared == "" {
				start = last
			}
			b.parsed++
		case 'B':
			_, rest := cstring(f.body())
			prepared, _ := cstring(rest)
			name = c.statements[prepared]
			if last == 0 || b.frames[last-1].kind() != 'P' || prepared != "" {
				start = last
			}
			b.bound++
		case 'E':
			b.add(name, start, last)
		case 'Q':
			query, _ := cstring(f.body())
			b.add(c.proxy.options.Catalog.Name(query), last, last)
			if !c.send(b, true) {
				return
			}
			b = &batch{application: application}
		case 'S':
			if !c.send(b, false) {
				return
			}
			b = &batch{application: application}
		case 'D', 'C':
		default: // passwords, flushes, the end
			if !c.pass(b) {
				return
			}
			b = &batch{application: application}
		}
	}
}

func (b *batch) add(name string, start, end int) {
	b.names = append(b.names, name)
	b.starts = append(b.starts, start)
	b.ends = append(b.ends, end)
	b.parses = append(b.parses, b.parsed)
	b.binds = append(b.binds, b.bound)
}

// bytes are the messages of an interval.
func (b *batch) bytes(from, to int) (out []byte) {
	for _, f := range b.frames[from:to] {
		out = append(out, f...)
	}
	return out
}

func (c *conn) pass(b *batch) bool {
	_, err := c.server.Write(b.bytes(0, len(b.frames)))
	return err == nil
}

// send passes on a round trip, as the hook wants it, and tells whether the connection goes on.
func (c *conn) send(b *batch, simple bool) bool {
	s := &sent{trip: &Trip{Owner: c.owner, Application: b.application, Connection: c.id, Statements: b.names}}
	out := b.bytes(0, len(b.frames))
	if len(b.names) > 0 {
		c.proxy.trips.Add(1)
		v := (*c.proxy.hook.Load())(s.trip, Before)
		if !c.hold(v) {
			return false
		}
		tear := min(v.Tear, len(b.names)-1)
		switch {
		case v.Cut && tear > 0:
			// What is torn off never comes; the server carries out what it has, which is known by its answers.
			out = append(b.bytes(0, b.starts[tear]), 'H', 0, 0, 0, 4) // Flush
			s.tear, s.torn = tear, func() {
				if v.Torn != nil {
					v.Torn()
				}
			}
		case v.Cut:
			return false
		case v.Fail != "" && !simple:
			var ok bool
			if out, ok = b.replaced(s, v); !ok {
				return false
			}
		}
	}
	s.trip.Sent = time.Now()
	select {
	case c.trips <- s:
	case <-c.over:
		return false
	}
	_, err := c.server.Write(out)
	return err == nil
}

// replaced are the messages with one statement that fails.
func (b *batch) replaced(s *sent, v Verdict) ([]byte, bool) {
	at := min(max(v.FailAt, 0), len(b.names)-1)
	instead, err := failing(v.Fail)
	if err != nil {
		return nil, false
	}
	s.broken = true
	s.parses, s.binds = b.parses[at], b.binds[at]-1
	if b.frames[b.starts[at]].kind() == 'P' {
		s.parses--
	}
	out := append(b.bytes(0, b.starts[at]), instead...)
	return append(out, b.bytes(b.ends[at]+1, len(b.frames))...), true
}

// hold does what a verdict says of time, and tells whether the connection goes on.
func (c *conn) hold(v Verdict) bool {
	if v.Hole {
		<-c.over
		return false
	}
	if v.Delay <= 0 {
		return true
	}
	t := time.NewTimer(v.Delay)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-c.over:
		return false
	}
}

// answers passes on what the server sends, a round trip's answers at a time.
func (c *conn) answers() {
	started := false
	for {
		if !started {
			f, err := readFrame(c.fromServer, true)
			if err != nil {
				return
			}
			if _, err := c.client.Write(f); err != nil {
				return
			}
			started = f.kind() == 'Z'
			continue
		}
		out, s, ok := c.collect()
		if len(out) > 0 && s == nil { // what the server says by itself
			if _, err := c.client.Write(out); err != nil {
				return
			}
		}
		if !ok {
			return
		}
		if s == nil {
			continue
		}
		if !c.answer(out, s) {
			return
		}
	}
}

// answer passes on the answers of a round trip, as the hook wants it.
func (c *conn) answer(out []byte, s *sent) bool {
	if len(s.trip.Statements) > 0 {
		v := (*c.proxy.hook.Load())(s.trip, After)
		if !c.hold(v) || v.Cut {
			return false
		}
		if v.Unknown != "" && s.trip.Failed == "" {
			answer, err := errorAnswer("ERROR", v.Unknown)
			if err != nil {
				return false
			}
			const ready = 6 // bytes of the ReadyForQuery at the end
			end := out[len(out)-ready:]
			out = append(append(out[:s.last:s.last], answer...), end...)
		}
	}
	_, err := c.client.Write(out)
	return err == nil
}

// fatal are errors after which the server ends the connection.
func fatal(sqlState string) bool { return sqlState == "57P01" || sqlState == "57P02" }

// collect reads until the server is ready for the next round trip. ok is false when the connection ends; then out is what there is to say
// before.
func (c *conn) collect() (out []byte, s *sent, ok bool) {
	seen := sent{}
	for {
		f, err := readFrame(c.fromServer, true)
		if err != nil {
			return out, nil, false
		}
		if s == nil {
			select {
			case s = <-c.trips:
			default: // a notice, or the server's goodbye
				if _, err := c.client.Write(f); err != nil {
					return nil, nil, false
				}
				continue
			}
		}
		if s.replacement(&seen, f) {
			continue
		}
		switch f.kind() {
		case 'E':
			if goodbye := s.fail(f); goodbye != nil {
				return append(out, goodbye...), nil, false
			}
		case 'C':
			s.last = len(out)
		case 'Z':
			s.trip.Done, s.trip.State = time.Now(), f.body()[0]
			return append(out, f...), s, true
		}
		out = append(out, f...)
		if s.torn != nil && (seen.tear >= s.tear || f.kind() == 'E') {
			s.torn()
			return nil, nil, false
		}
	}
}

// fail notes an error of the server. Where the suite made it, and it is one that ends the connection, the goodbye that the program is to hear is
// returned.
func (s *sent) fail(f frame) (goodbye []byte) {
	if s.trip.Failed != "" {
		return nil
	}
	s.trip.Failed = sqlStateOf(f)
	if !s.broken || !fatal(s.trip.Failed) {
		return nil
	}
	goodbye, err := errorAnswer("FATAL", s.trip.Failed)
	if err != nil {
		return f
	}
	return goodbye
}

// replacement counts an answer, and tells whether it is to a replaced statement, and so of nothing that the program has sent.
func (s *sent) replacement(seen *sent, f frame) bool {
	switch f.kind() {
	case '1':
		seen.parses++
		return s.broken && seen.parses > s.parses
	case '2':
		seen.binds++
		return s.broken && seen.binds > s.binds
	case 'C', 'I', 's':
		seen.tear++
	}
	return false
}
