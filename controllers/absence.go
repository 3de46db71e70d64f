// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

// An object that is gone witnesses nothing: a database that is another, or older, has views of objects that it should not act upon. What is absent is
// concluded from only when all objects that are there have been held against the database, and none speaks against it.

// Doubter tells what speaks against the database; a *bmdb.Connection is one.
type Doubter interface {
	Doubts(ctx context.Context, cluster, pool string, session uuid.UUID) (bmdb.Doubts, error)
}

// trust is the session under which all objects were last held against the database. It is safe for concurrent use.
type trust struct {
	mu      sync.Mutex
	is      bool
	session uuid.UUID
}

func (t *trust) get() (session uuid.UUID, is bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.session, t.is
}

// Trust says that Witness has succeeded under a session: as long as it lives in the database, that is still the same. Before the first call, and when that
// session is over, no views of objects that are gone end. uuid.Nil: it is taken to be the same for ever.
func (o *Objects) Trust(session uuid.UUID) {
	o.trust.mu.Lock()
	defer o.trust.mu.Unlock()
	o.trust.is, o.trust.session = true, session
}

// unsure is why nothing may be concluded from the absence of an object.
type unsure struct {
	// wait is when to look again. 0: something may be concluded.
	wait time.Duration
	// reason is DatabaseChanged or DatabaseRewound; empty: nobody has looked yet.
	reason string
}

// trustRetry is how often it is looked whether all objects were held against the database, which does not take long.
const trustRetry = time.Second

// doubts tells whether something may be concluded from the absence of objects of a pool.
func (o *Objects) doubts(ctx context.Context, pool string) (unsure, error) {
	session, trusted := o.trust.get()
	if !trusted {
		return unsure{wait: jitter(trustRetry)}, nil
	}
	d, err := o.store.Doubts(ctx, o.config.Cluster, pool, session)
	switch {
	case err != nil:
		return unsure{}, err
	case d.Reason != "":
		return unsure{jitter(doubtRetry), d.Reason}, nil
	case session != uuid.Nil && !d.SessionLives:
		return unsure{wait: jitter(trustRetry)}, nil
	}
	return unsure{}, nil
}

// detach takes a claim whose object is gone, or is being deleted, from the database. While that is in doubt it only sees to it that nothing more is
// started for the claim, if the database is the one that the object was in: then the caller comes again.
func (r *WorkClaimReconciler) detach(ctx context.Context, v bmdb.View, pool, key string) (remaining int64, doubts unsure, err error) {
	doubts, err = r.objects.doubts(ctx, pool)
	switch {
	case err != nil:
	case doubts.wait == 0:
		remaining, err = r.store.DetachClaim(ctx, v, pool, key)
	case doubts.reason == bmdb.DatabaseRewound:
		err = r.store.SuspendClaim(ctx, v, pool, key)
	}
	return remaining, doubts, err
}

// deletedInDoubt is what an object says that is being deleted and has to stay.
func deletedInDoubt(reason string) *projection.Verdict {
	return &projection.Verdict{
		State: projection.Stalled, Reason: v1alpha1.Reason(reason),
		Message: "It is being deleted, and goes when a person has looked at what speaks against the database and runs bmdb-operator acknowledge-database.",
	}
}
