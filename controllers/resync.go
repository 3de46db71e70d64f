// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// ViewLister lists the views of a cluster; a *bmdb.Connection is one.
type ViewLister interface {
	ViewsOf(ctx context.Context, cluster, kind string, after bmdb.ViewRow, limit int) ([]bmdb.ViewRow, error)
}

// Resync is a manager's Runnable that compares objects with rows, and rows with objects, when it starts and now and then: what was deleted while no
// operator ran has told nobody. Where all is in line it writes nothing.
type Resync struct {
	objects *Objects
	views   ViewLister
	every   time.Duration
	log     logr.Logger
}

const (
	viewsPage     = 1000
	resyncTimeout = 10 * time.Minute
	resyncRetry   = 10 * time.Second
)

// NewResync returns a resync of a cluster's objects, about every so often.
func NewResync(objects *Objects, views ViewLister, every time.Duration, log logr.Logger) *Resync {
	return &Resync{objects: objects, views: views, every: every, log: log}
}

// NeedLeaderElection is false: an object that all replicas look at is written by one of them at most.
func (r *Resync) NeedLeaderElection() bool { return false }

// Start compares until ctx is done. At the start the controllers look at all objects anyway.
func (r *Resync) Start(ctx context.Context) error {
	all := false
	for {
		wait := jitter(r.every)
		switch late, err := r.compare(ctx, all); {
		case err != nil && ctx.Err() == nil:
			r.log.Info("cannot compare objects with the database; it is tried again", "error", err.Error())
			wait = jitter(resyncRetry)
		case late > 0:
			all, wait = false, min(wait, late)
		default:
			all = true
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
	}
}

// compare returns when to compare rows again, because some could not be while the database is in doubt; 0: all were.
func (r *Resync) compare(ctx context.Context, all bool) (late time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, resyncTimeout)
	defer cancel()
	if all {
		if err := r.objects.Everything(ctx); err != nil {
			return 0, err
		}
	}
	unsure := map[string]time.Duration{} // by pool
	for _, kind := range []string{bmdb.KindMachine, bmdb.KindClaim, bmdb.KindProvider} {
		for after := (bmdb.ViewRow{}); ; {
			page, err := r.views.ViewsOf(ctx, r.objects.config.Cluster, kind, after, viewsPage)
			if err != nil {
				return 0, err
			}
			for _, v := range page {
				if err := r.objects.checkView(ctx, v, unsure); err != nil {
					return 0, err
				}
				after, late = v, max(late, unsure[v.Pool])
			}
			if len(page) < viewsPage {
				break
			}
		}
	}
	return late, nil
}

// checkView lets the controller of a view's kind look, if the cache has no object for the view. The controller asks the API server before it ends
// anything. It leaves out pools in doubt; unsure is what is known of that: 0 for those that are not.
func (o *Objects) checkView(ctx context.Context, v bmdb.ViewRow, unsure map[string]time.Duration) error {
	if !o.config.serves(v.Pool) {
		return nil
	}
	name := client.ObjectKey{Namespace: v.Pool, Name: v.Name}
	var object client.Object
	var to *inbox
	switch v.Kind {
	case bmdb.KindMachine:
		object, to = &v1alpha1.Machine{}, &o.machines
	case bmdb.KindClaim:
		object, to = &v1alpha1.WorkClaim{}, &o.claims
	default:
		object, to = &v1alpha1.ProviderConfig{}, &o.providers
	}
	err := o.client.Get(ctx, name, object)
	claim, isClaim := object.(*v1alpha1.WorkClaim)
	if err == nil && (!isClaim || claim.EffectiveKey() == v.ID) {
		return nil // its own controller compares it
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("look for the object of %s %s: %w", v.Kind, name, err)
	}
	if _, known := unsure[v.Pool]; !known {
		doubts, err := o.doubts(ctx, v.Pool)
		if err != nil {
			return err
		}
		unsure[v.Pool] = doubts.wait
	}
	if unsure[v.Pool] > 0 {
		return nil
	}
	switch v.Kind {
	case bmdb.KindClaim:
		o.names.remember(name, v.ID, v.UID)
	case bmdb.KindProvider:
		o.providerNames.remember(name, v.ID, v.UID)
	}
	to.add(name, rand.N(time.Second))
	return nil
}
