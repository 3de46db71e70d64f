// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package roles takes managing roles over from clusters that are gone. Of several clusters' objects for a machine, claim or provider one manages; when
// its cluster has had no live session for a time, this cluster's object does.
package roles

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/go-logr/logr"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Store is the database; a *bmdb.Connection is one.
type Store interface {
	SilentClusters(ctx context.Context, cluster string, silence time.Duration) ([]string, error)
	TakeOverRoles(ctx context.Context, t bmdb.Takeover) (roles int, err error)
}

// Config says for whom roles are taken over. All fields but Namespaces are required.
type Config struct {
	// Cluster is this cluster's ID, Pod this pod's name, for the audit log.
	Cluster, Pod string
	// Namespaces are those that are served; empty: all.
	Namespaces []string
	// Silence is for how long a cluster must have had no live session. 0: roles are taken over by hand only.
	Silence time.Duration
}

const (
	lookEvery = 30 * time.Second
	turn      = 5 * time.Minute // bounds one look with all that it takes over
)

// Keeper is a manager's Runnable.
type Keeper struct {
	store  Store
	config Config
	log    logr.Logger
	every  time.Duration
}

// New returns a keeper of a cluster's roles.
func New(store Store, config Config, log logr.Logger) *Keeper {
	// A silence that is shorter than that is noticed about as soon as it is over.
	return &Keeper{store: store, config: config, log: log, every: min(lookEvery, max(config.Silence, time.Second))}
}

// NeedLeaderElection is false: what one replica has taken over the others find taken.
func (k *Keeper) NeedLeaderElection() bool { return false }

// Start looks for silent clusters until ctx is done.
func (k *Keeper) Start(ctx context.Context) error {
	if k.config.Silence == 0 {
		<-ctx.Done()
		return nil
	}
	for sleep(ctx, k.every/2+rand.N(k.every)) {
		if err := k.look(ctx); err != nil && ctx.Err() == nil {
			k.log.Info("cannot look for clusters that are gone; it is tried again", "error", err.Error())
		}
	}
	return nil
}

func (k *Keeper) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, turn)
	defer cancel()
	silent, err := k.store.SilentClusters(ctx, k.config.Cluster, k.config.Silence)
	if err != nil {
		return err
	}
	for _, from := range silent {
		n, err := k.store.TakeOverRoles(ctx, bmdb.Takeover{
			From: from, To: k.config.Cluster, Pools: k.config.Namespaces, Silence: k.config.Silence, Actor: k.config.Pod,
			Cause: fmt.Sprintf("cluster %s has had no session for %s", from, k.config.Silence),
		})
		if n > 0 {
			k.log.Info("took managing roles over from a cluster that is gone", "from", from, "roles", n)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
