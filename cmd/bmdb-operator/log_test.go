// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
)

// logged keeps what is logged. It is safe for concurrent use.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write implements io.Writer.
func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// something fails while nothing was written.
func (l *logged) something() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() == 0 {
		return errors.New("nothing is logged")
	}
	return nil
}

var errUnready = errors.New("there is no session")

// foreignLines lets others log: client-go, the standard library, and thirty probes of something that is not ready.
func foreignLines(t *testing.T) {
	t.Helper()
	klog.Warningf("watch of %s ended with:\n%v", "*v1.WorkClaim", errUnready)
	klog.ErrorS(errUnready, "Failed to watch", "type", "*v1.WorkClaim")
	klog.FromContext(t.Context()).Info("with a context")
	log.Printf("http: TLS handshake error from 10.0.0.1: EOF")
	probes := &healthz.Handler{Checks: map[string]healthz.Checker{"session": func(*http.Request) error { return errUnready }}}
	for range 30 {
		answer := httptest.NewRecorder()
		probes.ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		if answer.Code == http.StatusOK {
			t.Error("the probe succeeds")
		}
	}
}

// verify expects one JSON object in each line, those of foreignLines among them, and not a line for each probe.
func (l *logged) verify(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	probes, foreign := 0, 0
	for line := range strings.Lines(l.text.String()) {
		var entry struct{ Time, Level, Msg string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Time == "" || entry.Level == "" || entry.Msg == "" {
			t.Errorf("not a line of JSON: %v: %q", err, line)
		}
		switch {
		case entry.Msg == failedProbe:
			probes++
		case strings.Contains(entry.Msg, "*v1.WorkClaim ended"), entry.Msg == "Failed to watch", entry.Msg == "with a context", strings.HasPrefix(entry.Msg, "http: "):
			foreign++
		}
	}
	if probes > 3 {
		t.Errorf("%d lines of 30 probes", probes)
	}
	if foreign != 4 {
		t.Errorf("%d of 4 lines of others are in the log", foreign)
	}
}
