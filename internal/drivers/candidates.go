// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"context"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// forEach is for how long the providers of machines are remembered, for each machine that was looked at: who names a thousand machines is asked for
// them at every turn, and looking them up would be most of what the operator does.
const (
	forEach   = 5 * time.Millisecond
	forAll    = 5 * time.Second
	mostKnown = 1000 // selections, before those are forgotten that are out of date
)

// known are the providers of machines by name, as they were a moment ago. It is safe for concurrent use. The zero value knows nothing.
type known struct {
	mu         sync.Mutex
	seed       maphash.Seed
	selections map[uint64]selection
}

// selection is what the machines of some names had.
type selection struct {
	providers []string
	read      time.Time
	lasts     time.Duration
}

// of returns the providers of named machines of a pool, from memory or by look.
func (k *known) of(pool string, machines []string, look func() ([]string, error)) ([]string, error) {
	id := k.id(pool, machines)
	k.mu.Lock()
	s, ok := k.selections[id]
	k.mu.Unlock()
	if ok && time.Since(s.read) < s.lasts {
		return slices.Clone(s.providers), nil
	}
	read := time.Now()
	providers, err := look()
	if err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.selections) >= mostKnown {
		maps.DeleteFunc(k.selections, func(_ uint64, s selection) bool { return time.Since(s.read) >= s.lasts })
	}
	k.selections[id] = selection{providers: providers, read: read, lasts: min(time.Duration(len(machines))*forEach, forAll)}
	return slices.Clone(providers), nil
}

func (k *known) id(pool string, machines []string) uint64 {
	k.mu.Lock()
	if k.selections == nil {
		k.seed, k.selections = maphash.MakeSeed(), map[uint64]selection{}
	}
	seed := k.seed
	k.mu.Unlock()
	var h maphash.Hash
	h.SetSeed(seed)
	for _, s := range append([]string{pool}, machines...) {
		_, _ = h.WriteString(s)
		_ = h.WriteByte(0) // in no name
	}
	return h.Sum64()
}

// Candidates returns the providers that the machines of a claim may have, in order: the one that it names, else those of the machines that
// it names, as they were a moment ago, else all of the pool's.
func (o *Opener) Candidates(ctx context.Context, spec *bmdb.ClaimSpec) ([]string, error) {
	if spec.Provider != "" {
		return []string{spec.Provider}, nil
	}
	var names []string
	if len(spec.Names) > 0 {
		var err error
		names, err = o.known.of(spec.Pool, spec.Names, func() ([]string, error) { return o.providersOf(ctx, spec.Pool, spec.Names) })
		if err != nil || len(names) > 0 {
			return names, err
		}
	}
	// Also where none of the machines that it names is here: they may have no objects.
	var configs v1alpha1.ProviderConfigList
	if err := o.cached.List(ctx, &configs, client.InNamespace(spec.Pool)); err != nil {
		return nil, fmt.Errorf("list ProviderConfigs of namespace %s: %w", spec.Pool, err)
	}
	for i := range configs.Items {
		names = append(names, configs.Items[i].Name)
	}
	slices.Sort(names)
	return names, nil
}

// providersOf looks up which providers those of the machines have that are here.
func (o *Opener) providersOf(ctx context.Context, pool string, machines []string) (providers []string, err error) {
	for _, name := range machines {
		var m v1alpha1.Machine
		err := o.cached.Get(ctx, client.ObjectKey{Namespace: pool, Name: name}, &m)
		switch {
		case err == nil:
			providers = append(providers, m.Spec.ProviderRef.Name)
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("get Machine %s/%s: %w", pool, name, err)
		}
	}
	slices.Sort(providers)
	return slices.Compact(providers), nil
}
