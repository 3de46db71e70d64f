// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net/url"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
)

// line is a connection's way that can be made bad: toxiproxy between the pod's proxy and the database.
type line struct {
	t     *testing.T
	proxy *toxiproxy.Proxy
}

// newLine puts a line before the database of a pod.
func newLine(t *testing.T, p *pod, database string) *line {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(prometheus.NewRegistry()), zerolog.Nop())
	l := &line{t: t, proxy: toxiproxy.NewProxy(server, p.Name, "127.0.0.1:0", u.Host)}
	if err := l.proxy.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.proxy.Stop)
	p.proxy.SetTarget(l.proxy.Listen)
	return l
}

// poison makes the line bad in one direction: "upstream" is to the database.
func (l *line) poison(kind, stream string, attributes map[string]int) {
	l.t.Helper()
	if err := l.add(kind, stream, attributes); err != nil {
		l.t.Fatal(err)
	}
}

// add is poison for any goroutine.
func (l *line) add(kind, stream string, attributes map[string]int) error {
	text, err := json.Marshal(map[string]any{"type": kind, "stream": stream, "attributes": attributes})
	if err == nil {
		_, err = l.proxy.Toxics.AddToxicJson(bytes.NewReader(text))
	}
	return err
}

// cure makes the line good. Connections that lost something of what was said end.
func (l *line) cure() { l.proxy.Toxics.ResetToxics(context.WithoutCancel(l.t.Context())) }

// cut ends all connections, and refuses others until it is mended.
func (l *line) cut() { l.proxy.Stop() }

func (l *line) mend() {
	l.t.Helper()
	if err := l.proxy.Start(); err != nil {
		l.t.Fatal(err)
	}
}
