// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package worker

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/go-logr/logr"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// driverSet is the drivers that one turn opened, for its works. They are closed when the last of them has ended.
type driverSet struct {
	drivers map[string]provider.Driver
	failed  map[string]error
	users   atomic.Int64
	log     logr.Logger
}

func (d *driverSet) release() {
	if d.users.Add(-1) > 0 {
		return
	}
	for name, driver := range d.drivers {
		if err := driver.Close(); err != nil {
			d.log.Info("driver could not be closed", "provider", name, "error", err.Error())
		}
	}
}

// openDrivers opens what the claim's machines may need, before any of them is locked.
func (l *claimLoop) openDrivers(ctx context.Context) (*driverSet, error) {
	names, err := l.engine.drivers.Candidates(ctx, &l.claim.Spec)
	if err != nil {
		return nil, err
	}
	set := &driverSet{drivers: map[string]provider.Driver{}, failed: map[string]error{}, log: l.log}
	set.users.Store(1)
	for _, name := range names {
		driver, err := l.engine.drivers.Open(ctx, l.id.pool, name)
		if err != nil {
			l.log.Info("provider cannot be used", "provider", name, "error", err.Error())
			l.engine.objects.ProviderFailed(l.id.pool, name)
			set.failed[name] = err
			continue
		}
		set.drivers[name] = driver
	}
	if len(set.drivers) > 0 {
		return set, nil
	}
	for name, err := range set.failed {
		if !needsPerson(err) {
			return nil, fmt.Errorf("open driver of provider %s: %w", name, err)
		}
	}
	return nil, errNotReady
}

// needsPerson tells whether an error does not pass by itself.
func needsPerson(err error) bool {
	var refusal interface{ NeedsPerson() bool }
	return errors.As(err, &refusal) && refusal.NeedsPerson()
}
