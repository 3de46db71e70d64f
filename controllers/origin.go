// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const (
	// originEvery is about how often it is looked which API server this is.
	originEvery = 30 * time.Second
	// originTimeout bounds one look.
	originTimeout = 10 * time.Second
)

// OriginWatch is a manager's Runnable that ends the process when the API server is another one than at its start. Watches do not notice: they
// wait for a version of objects that the history of the new one has not reached.
type OriginWatch struct {
	reader client.Reader
	origin string
	log    logr.Logger
}

// NewOriginWatch returns a watch of the API server that reader reads from, which must not be a cache. origin is what OriginOf returned at the
// start; empty: not known, and then nothing is looked at.
func NewOriginWatch(reader client.Reader, origin string, log logr.Logger) *OriginWatch {
	return &OriginWatch{reader: reader, origin: origin, log: log}
}

// NeedLeaderElection is false: what a process knows is of an API server, whatever others know.
func (w *OriginWatch) NeedLeaderElection() bool { return false }

// Start looks until ctx is done. ErrAnotherAPIServer ends it: all that this process knows of objects is of another API server, and the next
// process begins with the present one. That an API server cannot be asked, or that the namespace is not there yet, says nothing.
func (w *OriginWatch) Start(ctx context.Context) error {
	for w.origin != "" {
		t := time.NewTimer(jitter(originEvery))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		switch origin, err := w.look(ctx); {
		case err == nil && origin != w.origin:
			return fmt.Errorf("%w: the UID of its namespace kube-system was %s and is %s", ErrAnotherAPIServer, w.origin, origin)
		case err != nil && ctx.Err() == nil:
			w.log.Info("cannot look which API server this is; it is tried again", "error", err.Error())
		}
	}
	return nil
}

func (w *OriginWatch) look(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, originTimeout)
	defer cancel()
	return OriginOf(ctx, w.reader)
}
