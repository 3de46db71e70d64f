// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

// conflictRetry is how often an object that contradicts another is looked at again: the other one's going wakes nobody.
const conflictRetry = 5 * time.Second

// machineScope is what the phases know of a Machine.
type machineScope struct {
	machine  *v1alpha1.Machine
	view     bmdb.View
	id       uuid.UUID // uuid.Nil: not known
	snapshot *bmdb.MachineSnapshot
	recorded bool // the row says what the object says
	refusal  *projection.Verdict
	doubts   *projection.Verdict // of the database
}

// spec is what the database is told.
func (s *machineScope) spec() bmdb.MachineSpec {
	m := s.machine
	return bmdb.MachineSpec{
		Pool: m.Namespace, Name: m.Name, Provider: m.Spec.ProviderRef.Name, ProviderID: m.Spec.ProviderID, Address: m.Spec.Address,
		Labels: mirrored(m.Labels),
	}
}

// mirrored returns the labels that claims may select by: not those by which tools keep their books.
func mirrored(labels map[string]string) map[string]string {
	out := map[string]string{}
	for key, value := range labels {
		domain, _, _ := strings.Cut(key, "/")
		switch {
		case !strings.Contains(key, "/"):
		case belongs(domain, "kubernetes.io"), belongs(domain, "k8s.io"), belongs(domain, "fluxcd.io"), domain == "argocd.argoproj.io":
			continue
		}
		out[key] = value
	}
	return out
}

func belongs(domain, to string) bool { return domain == to || strings.HasSuffix(domain, "."+to) }

// find reads the row that the status names, which saves a registration where nothing has changed.
func (r *MachineReconciler) find(ctx context.Context, s *machineScope) error {
	s.id = machineID(&s.machine.Status, r.config.Database)
	if err := r.read(ctx, s); err != nil {
		return err
	}
	s.recorded = s.snapshot != nil && says(s.snapshot, s.view, s.spec())
	return nil
}

// machineID returns the ID that a status names, or uuid.Nil. A status is only a view: it may be missing, wrong, or of another database.
func machineID(s *v1alpha1.MachineStatus, database uuid.UUID) uuid.UUID {
	if id, err := uuid.Parse(s.MachineID); err == nil && s.DatabaseID == database.String() {
		return id
	}
	return uuid.Nil
}

// says tells whether a row says of a machine what its object says, and some view manages it.
func says(m *bmdb.MachineSnapshot, v bmdb.View, spec bmdb.MachineSpec) bool {
	view := viewOf(m.Views, v.Cluster)
	managed := slices.ContainsFunc(m.Views, func(v bmdb.MachineView) bool { return v.Manages })
	return managed && view != nil && *view == v && m.Pool == spec.Pool && m.Name == spec.Name && m.Provider == spec.Provider &&
		m.ProviderID == spec.ProviderID && m.Address == spec.Address && maps.Equal(m.Labels, spec.Labels)
}

// doubt finds out whether the object speaks against the database.
func (r *MachineReconciler) doubt(ctx context.Context, s *machineScope) (err error) {
	var row bmdb.Standing
	if s.snapshot != nil {
		row = s.snapshot.Standing
	}
	s.doubts, err = r.config.doubt(ctx, r.store, s.machine, row, false)
	return err
}

// register records the machine.
func (r *MachineReconciler) register(ctx context.Context, s *machineScope) error {
	if s.doubts != nil || s.recorded || !s.machine.DeletionTimestamp.IsZero() {
		return nil
	}
	registration, err := r.store.RegisterMachine(ctx, s.view, s.spec())
	var conflict *bmdb.ConflictError
	var limit *bmdb.AtLimitError
	switch {
	case errors.As(err, &conflict):
		s.refusal = &projection.Verdict{
			State: projection.Stalled, Reason: v1alpha1.Reason(conflict.Kind),
			Message: fmt.Sprintf("Nothing was recorded: %s.", conflict.Other),
		}
	case errors.As(err, &limit):
		s.refusal = &projection.Verdict{
			State: projection.Stalled, Reason: v1alpha1.ReasonAtLimit,
			Message: fmt.Sprintf("Provider %s may have %d machines, and has them (spec.limits.maxMachines of its ProviderConfig).", limit.Provider, limit.Limit),
		}
	case err != nil:
		return err
	default:
		s.id, s.snapshot = registration.MachineID, nil
	}
	return nil
}

// read reads the machine's row, unless that was done.
func (r *MachineReconciler) read(ctx context.Context, s *machineScope) error {
	if s.id == uuid.Nil || s.snapshot != nil {
		return nil
	}
	snapshots, err := r.store.MachineSnapshots(ctx, []uuid.UUID{s.id})
	if err != nil {
		return err
	}
	if len(snapshots) > 0 {
		s.snapshot = &snapshots[0]
	}
	return nil
}

// fail lets a new object say why it has no status, and returns the error.
func (r *MachineReconciler) fail(ctx context.Context, s *machineScope, err error) error {
	if s.refusal = unrecorded(s.machine, err); s.refusal == nil {
		return err
	}
	ctx, cancel := telling(ctx)
	defer cancel()
	_, showErr := r.show(ctx, s)
	return errors.Join(err, showErr)
}

// show writes the status.
func (r *MachineReconciler) show(ctx context.Context, s *machineScope) (ctrl.Result, error) {
	if wait := r.stagger(s.machine, s.machine.Name); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	old := &s.machine.Status
	status := projection.Machine(old, projection.MachineFacts{
		Generation: s.machine.Generation, Cluster: r.config.Cluster, Snapshot: s.snapshot, Refusal: s.refusal, Doubts: s.doubts,
		Now: r.Clock.Now(),
	})
	written, wait, err := r.status.write(ctx, s.machine, *old, status, false)
	if err != nil {
		return ctrl.Result{}, err
	}
	if written {
		r.announce(s.machine, projection.ReadyOf(old.Conditions), projection.ReadyOf(status.Conditions))
	}
	if wait == 0 && s.doubts != nil {
		return ctrl.Result{RequeueAfter: jitter(doubtRetry)}, nil
	}
	if wait == 0 && s.snapshot != nil {
		r.shown.Shown(bmdb.Pending{Kind: bmdb.KindMachine, Pool: s.machine.Namespace, ID: s.snapshot.MachineID.String(), Rev: s.snapshot.Rev})
	}
	if wait == 0 && s.refusal != nil {
		wait = jitter(conflictRetry)
	}
	return ctrl.Result{RequeueAfter: wait}, nil
}
