// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bmc is the witness of the fault suite: what a management controller in each machine would be that remembers fencing numbers. It
// stands outside of the pods and of the database, is told what drivers do, refuses a lower number than the highest it has seen, and keeps
// all of it. It can hold a step open, so that somebody can strike in the middle of a side effect.
package bmc

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
)

// Touch is one thing that a driver did to a machine, or tried.
type Touch struct {
	witnessed.Event
	// At is when it arrived, Done when the machine carried it out, and Left when the driver was answered, in nanoseconds since 1970; 0: never.
	At, Done, Left int64
	// Refused: a higher fencing number had been there before.
	Refused bool
}

// Point is where a touch is: a kind, a step's name, and whether the machine has carried it out.
type Point struct {
	Kind, Step string
	Done       bool
}

func (p Point) String() string {
	name := p.Kind
	if p.Step != "" {
		name += " " + p.Step
	}
	if p.Done {
		return name + ": done"
	}
	return name + ": asked"
}

// Verdict is what becomes of a touch.
type Verdict struct {
	// Hang: the driver gets no answer before it gives up or dies.
	Hang bool
	// Wait: the driver gets its answer when this is closed. Nil: at once.
	Wait <-chan struct{}
}

// Hook decides, and may take its time. It is called from many goroutines at once.
type Hook func(t Touch, at Point) Verdict

// Witness is safe for concurrent use.
type Witness struct {
	server *http.Server
	url    string
	done   chan struct{}
	hook   atomic.Pointer[Hook]

	mu      sync.Mutex
	highest map[uuid.UUID]int64
	touches []Touch
}

// Listen starts a witness at an address of its own. The caller closes it.
func Listen(ctx context.Context) (*Witness, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen as witness: %w", err)
	}
	w := &Witness{url: "http://" + listener.Addr().String(), done: make(chan struct{}), highest: map[uuid.UUID]int64{}}
	w.SetHook(nil)
	w.server = &http.Server{Handler: w, ReadHeaderTimeout: time.Minute}
	go func() {
		defer close(w.done)
		_ = w.server.Serve(listener) // it ends by Close
	}()
	return w, nil
}

// URL is where drivers find it.
func (w *Witness) URL() string { return w.url }

// SetHook replaces the hook; nil lets everything pass.
func (w *Witness) SetHook(h Hook) {
	if h == nil {
		h = func(Touch, Point) Verdict { return Verdict{} }
	}
	w.hook.Store(&h)
}

// Close ends it.
func (w *Witness) Close() error {
	err := w.server.Close()
	<-w.done
	return err
}

// Touches are all that there were, in the order in which the machines carried them out.
func (w *Witness) Touches() []Touch {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Touch(nil), w.touches...)
}

// ServeHTTP implements http.Handler.
func (w *Witness) ServeHTTP(out http.ResponseWriter, r *http.Request) {
	t := Touch{At: time.Now().UnixNano()}
	if err := json.NewDecoder(r.Body).Decode(&t.Event); err != nil {
		http.Error(out, err.Error(), http.StatusBadRequest)
		return
	}
	hook := *w.hook.Load()
	at := Point{Kind: t.Kind, Step: t.Step}
	if !wait(r.Context(), hook(t, at)) {
		return
	}
	index := w.carryOut(&t)
	at.Done = true
	if !wait(r.Context(), hook(t, at)) {
		return
	}
	w.mu.Lock()
	w.touches[index].Left = time.Now().UnixNano()
	w.mu.Unlock()
	if t.Refused {
		http.Error(out, "a higher fence was here", http.StatusConflict)
	}
}

func wait(ctx context.Context, v Verdict) bool {
	if v.Hang {
		<-ctx.Done()
	}
	if v.Wait != nil {
		select {
		case <-ctx.Done():
		case <-v.Wait:
		}
	}
	return ctx.Err() == nil
}

func (w *Witness) carryOut(t *Touch) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Refused = t.Fence < w.highest[t.Machine] && t.Kind != witnessed.End
	w.highest[t.Machine] = max(w.highest[t.Machine], t.Fence)
	t.Done = time.Now().UnixNano()
	w.touches = append(w.touches, *t)
	return len(w.touches) - 1
}
