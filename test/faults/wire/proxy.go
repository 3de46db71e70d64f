// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
)

// Options configure a proxy.
type Options struct {
	// Database is the URL of the server that it stands before. Required.
	Database string
	// Catalog names statements. Required.
	Catalog *Catalog
	// Owner, if not nil, is asked at each connection to whom it belongs.
	Owner func() any
	// Hook decides. Nil: everything passes.
	Hook Hook
}

// Proxy stands before a database. It is safe for concurrent use.
type Proxy struct {
	options  Options
	listener net.Listener
	target   string
	url      string
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	hook     atomic.Pointer[Hook]
	count    atomic.Int64
	trips    atomic.Int64

	mu    sync.Mutex
	conns map[*conn]bool
}

// Listen starts a proxy at an address of its own. The caller closes it.
func Listen(ctx context.Context, o Options) (*Proxy, error) {
	u, err := url.Parse(o.Database)
	if err != nil {
		return nil, fmt.Errorf("parse URL of the database: %w", err)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen before the database: %w", err)
	}
	p := &Proxy{options: o, listener: listener, target: u.Host, conns: map[*conn]bool{}}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.SetHook(o.Hook)
	u.Host = listener.Addr().String()
	query := u.Query()
	query.Set("sslmode", "disable")
	u.RawQuery = query.Encode()
	p.url = u.String()
	p.wg.Go(p.accept)
	return p, nil
}

// URL is that of the database as programs are to know it.
func (p *Proxy) URL() string { return p.url }

// Address is where it listens.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// SetTarget makes new connections go to another host and port.
func (p *Proxy) SetTarget(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target = address
}

// SetHook replaces the hook; nil lets everything pass.
func (p *Proxy) SetHook(h Hook) {
	if h == nil {
		h = func(*Trip, Side) Verdict { return Verdict{} }
	}
	p.hook.Store(&h)
}

// Trips is how many round trips with statements there were.
func (p *Proxy) Trips() int64 { return p.trips.Load() }

// CutAll ends all connections there are and returns how many.
func (p *Proxy) CutAll() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.end()
	}
	return len(p.conns)
}

// Close ends all connections and waits for their ends.
func (p *Proxy) Close() {
	p.cancel()
	_ = p.listener.Close() // nobody listens on it any more
	p.CutAll()
	p.wg.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	p.mu.Lock()
	target := p.target
	p.mu.Unlock()
	server, err := (&net.Dialer{}).DialContext(p.ctx, "tcp", target)
	if err != nil {
		return
	}
	defer server.Close()
	c := &conn{
		proxy: p, id: p.count.Add(1), client: client, server: server, statements: map[string]string{}, trips: make(chan *sent, maxPipeline), over: make(chan struct{}),
		fromClient: bufio.NewReader(client), fromServer: bufio.NewReader(server),
	}
	if p.options.Owner != nil {
		c.owner = p.options.Owner()
	}
	p.mu.Lock()
	p.conns[c] = true
	p.mu.Unlock()
	if p.ctx.Err() != nil {
		c.end()
	}
	var wg sync.WaitGroup
	wg.Go(func() { c.requests(); c.end() })
	wg.Go(func() { c.answers(); c.end() })
	wg.Wait()
	p.mu.Lock()
	delete(p.conns, c)
	p.mu.Unlock()
}
