// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

// claimScope is what the phases know of a WorkClaim.
type claimScope struct {
	claim    *v1alpha1.WorkClaim
	name     types.NamespacedName
	key      string
	view     bmdb.View
	twin     string // name of the object that speaks for the key, if it is another one
	runnable bool
	refusal  *projection.Verdict
	again    time.Duration // when the refusal may have passed; 0: not by itself
	conflict bool          // the row is that of another spec
	running  bool          // the database was just told of it, and it is to be carried out
	snapshot *bmdb.ClaimSnapshot
	doubts   *projection.Verdict // of the database
}

func (s *claimScope) refuse(reason v1alpha1.Reason, format string, args ...any) {
	if s.refusal == nil {
		s.refusal = &projection.Verdict{State: projection.Stalled, Reason: reason, Message: fmt.Sprintf(format, args...)}
	}
}

// spec is what the database is told.
func (s *claimScope) spec() bmdb.ClaimSpec {
	c := &s.claim.Spec
	spec := bmdb.ClaimSpec{
		Pool: s.claim.Namespace, Key: s.key, Process: c.Process, Mode: string(c.Mode), Names: c.Machines.Names, Provider: c.Machines.ProviderRef.Name,
		Selector: selectorOf(c.Machines.Selector), Parameters: c.ParameterStrings(),
		Parallelism: int64(c.Parallelism), TimeoutSeconds: int64(c.TimeoutSeconds), MaxAttempts: int64(c.MaxAttempts),
		BackoffInitialSeconds: int64(c.Backoff.InitialSeconds), BackoffMaximumSeconds: int64(c.Backoff.MaximumSeconds),
		MaxFailedMachines: wide(c.MaxFailedMachines), Suspended: c.Suspend != nil && *c.Suspend,
	}
	if c.Mode == v1alpha1.WorkModeOnce {
		spec.Completions = new(int64(s.claim.EffectiveCompletions()))
	}
	if c.ActiveDeadlineSeconds > 0 {
		spec.ActiveDeadlineSeconds = &c.ActiveDeadlineSeconds
	}
	return spec
}

func selectorOf(s *v1alpha1.LabelSelector) *bmdb.Selector {
	if s == nil {
		return nil
	}
	out := &bmdb.Selector{}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		if out.MatchLabels == nil {
			out.MatchLabels = map[string]string{}
		}
		out.MatchLabels[key] = string(s.MatchLabels[key])
	}
	for _, e := range s.MatchExpressions {
		term := bmdb.SelectorTerm{Key: e.Key, Operator: bmdb.SelectorOperator(e.Operator)}
		for _, v := range e.Values {
			term.Values = append(term.Values, string(v))
		}
		out.MatchExpressions = append(out.MatchExpressions, term)
	}
	return out
}

// findTwin looks for another object of this cluster that speaks for the key. This one then reports what is done for it, if it says the
// same, and else contradicts it.
func (r *WorkClaimReconciler) findTwin(ctx context.Context, s *claimScope) error {
	list, err := claimsOf(ctx, r.Client, s.claim.Namespace, s.key)
	if err != nil || len(list) == 0 || list[0].UID == s.claim.UID {
		return err
	}
	other := &list[0]
	s.twin = other.Name
	a, b := s.claim.Spec, other.Spec
	same := a.Process == b.Process && a.Mode == b.Mode && equality.Semantic.DeepEqual(a.Machines, b.Machines) &&
		maps.Equal(a.Parameters, b.Parameters) && s.claim.EffectiveCompletions() == other.EffectiveCompletions()
	if !same {
		s.conflict = true
		s.refuse(v1alpha1.ReasonKeyConflict, "Key %s stands for another spec, that of WorkClaim %s. Use another key or name.", s.key, other.Name)
	}
	return nil
}

// judge finds out whether pods of this cluster can carry the claim out.
func (r *WorkClaimReconciler) judge(ctx context.Context, s *claimScope) error {
	if s.twin != "" {
		return nil
	}
	name := s.claim.Spec.Process
	if s.claim.Spec.Mode == v1alpha1.WorkModeContinuous {
		defined, err := r.store.Processes(ctx, s.claim.Namespace)
		if err != nil {
			return err
		}
		for _, p := range defined {
			if p.Name == name && !p.Convergent {
				s.refuse(v1alpha1.ReasonProcessNotConvergent, "Success of process %s leaves the machine in need of it, so mode Continuous would repeat it for ever. Use mode Once.", name)
			}
		}
	}
	if !r.processes.Has(name) {
		s.refuse(v1alpha1.ReasonProcessNotAvailable, "This version of the operator does not carry out process %s.", name)
	}
	if s.refusal != nil {
		return nil
	}
	return r.judgeProviders(ctx, s)
}

// judgeProviders finds out whether a provider of the claim's machines is ready.
func (r *WorkClaimReconciler) judgeProviders(ctx context.Context, s *claimScope) error {
	spec := s.spec()
	names, err := r.selections.Candidates(ctx, &spec)
	if err != nil {
		return err
	}
	why, pending, missing := fmt.Sprintf("There is no ProviderConfig in namespace %s.", s.claim.Namespace), false, true
	for i, name := range names {
		var config v1alpha1.ProviderConfig
		err := r.Client.Get(ctx, client.ObjectKey{Namespace: s.claim.Namespace, Name: name}, &config)
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("get ProviderConfig %s/%s: %w", s.claim.Namespace, name, err)
		}
		ready := readyOf(&config)
		switch {
		case ready.Status == "True":
			s.runnable = true
			return nil
		case err == nil && ready.Status == "":
			why, pending = fmt.Sprintf("ProviderConfig %s was not looked at yet.", name), true
		case i > 0:
		case err != nil:
			why = fmt.Sprintf("There is no ProviderConfig %s.", name)
		default:
			why, missing = fmt.Sprintf("ProviderConfig %s: %s: %s", name, ready.Reason, ready.Message), false
		}
	}
	s.refuse(v1alpha1.ReasonProviderNotReady, "%s", why)
	// Of manifests that are applied together one comes first: that alone needs no person.
	age := r.Clock.Since(s.claim.CreationTimestamp.Time)
	switch {
	case pending:
		s.refusal.State = projection.Waiting
	case missing && age.Abs() < settling: // else it is long ago, or told by another clock
		s.refusal.State, s.again = projection.Waiting, settling-max(age, 0)
	default:
		// Which providers the claim needs depends on its machines too, and their coming wakes nobody here.
		s.again = jitter(recheck)
	}
	return nil
}

// settling is for how long a new claim waits for what it names.
const settling = 5 * time.Second

// doubt finds out whether the object speaks against the database.
func (r *WorkClaimReconciler) doubt(ctx context.Context, s *claimScope) (err error) {
	var row bmdb.Standing
	if s.snapshot != nil {
		row = s.snapshot.Standing
	}
	s.doubts, err = r.config.doubt(ctx, r.store, s.claim, row, projection.ClaimFinal(s.snapshot))
	return err
}

// attach brings the claim to the database, unless that was done already.
func (r *WorkClaimReconciler) attach(ctx context.Context, s *claimScope) error {
	if s.twin != "" {
		return nil
	}
	if s.doubts != nil {
		// What a person does not want must be stopped before the database is acknowledged.
		if s.spec().Suspended && s.doubts.Reason == v1alpha1.ReasonDatabaseRewound {
			return r.store.SuspendClaim(ctx, s.view, s.name.Namespace, s.key)
		}
		return nil
	}
	known := r.objects.names.recall(s.name)
	told := remembered{key: s.key, uid: s.view.UID, generation: s.claim.Generation, runnable: s.runnable}
	// Who manages may have changed without us: whoever does now says what the spec is.
	told.manages = known.manages
	if c := s.snapshot; known == told && c != nil && c.State != bmdb.ClaimDetached && c.Manager != nil && known.manages == (c.Manager.Cluster == r.config.Cluster) {
		return nil
	}
	attachment, err := r.store.AttachClaim(ctx, s.view, s.spec(), s.runnable)
	var conflict *bmdb.KeyConflictError
	switch {
	case errors.As(err, &conflict):
		s.conflict, s.refusal = true, nil
		whose := "whose object is gone"
		if conflict.Name != "" {
			whose = fmt.Sprintf("that of WorkClaim %s in cluster %s", conflict.Name, conflict.Cluster)
		}
		s.refuse(v1alpha1.ReasonKeyConflict, "Key %s stands for another spec, %s. Use another key or name.", s.key, whose)
		return nil
	case err != nil:
		return err
	}
	told.manages = attachment.Manages
	r.objects.names.attached(s.name, told)
	s.snapshot = nil
	if attachment.State == bmdb.ClaimRunning && s.runnable {
		s.running = s.refusal == nil
		r.workers.Poll()
		r.workers.Wake(s.name.Namespace, s.key)
	}
	return nil
}

// recall reads the claim's row, which tells whether the database still knows what it was told. Of an object that was never shown anything, and that
// the database was not told of, there is nothing to know before it is.
func (r *WorkClaimReconciler) recall(ctx context.Context, s *claimScope) error {
	if s.twin == "" && s.claim.Status.DatabaseID == "" && r.objects.names.recall(s.name).generation == 0 {
		return nil
	}
	return r.read(ctx, s)
}

// firstStatus is for how long nothing is shown of a claim that the database was just told of, if nothing is to be said but that it is carried out:
// short works have ended by then, and what has ended is shown at once.
const firstStatus = time.Second

// wait is how long this replica leaves a new object without a status.
func (r *WorkClaimReconciler) wait(s *claimScope) time.Duration {
	if !s.running || r.config.Stagger == 0 || readyOf(s.claim).Status != "" {
		return r.stagger(s.claim, s.key)
	}
	r.waited.first(s.claim.UID)
	wait := firstStatus + r.config.turn(s.name.Namespace, s.key)
	r.objects.patience.have(s.claim.UID, r.Clock.Now(), wait)
	return wait
}

// read reads the claim's row, unless that was done.
func (r *WorkClaimReconciler) read(ctx context.Context, s *claimScope) error {
	if s.snapshot != nil || s.conflict {
		return nil
	}
	snapshot, err := r.store.ClaimSnapshot(ctx, s.name.Namespace, s.key, bmdb.ClaimLimits{})
	if errors.Is(err, bmdb.ErrNoSuchClaim) {
		return nil
	}
	s.snapshot = snapshot
	return err
}

// elsewhere tells whether another replica shows the claim: the one that owns it knows best what goes on. The end of a claim is shown by any
// replica, but the one that saw it as the owner has the first turn: then wait is how long that is.
func (r *WorkClaimReconciler) elsewhere(s *claimScope, owns bool) (elsewhere bool, wait time.Duration) {
	c := s.snapshot
	if c == nil || owns || s.refusal != nil || s.doubts != nil {
		return false, 0
	}
	owned := c.Owner != "" && c.Owner != r.config.Pod && c.OwnerCluster == r.config.Cluster
	if c.State == bmdb.ClaimRunning {
		return owned, 0
	}
	// Who ends a claim gives it up, unless its last work does both. What ended before there was this object is nobody's to show first.
	ended := projection.ClaimFinal(c) && c.CompletedAt != nil && c.CompletedAt.After(s.claim.CreationTimestamp.Time)
	shown := meta.IsStatusConditionTrue(s.claim.Status.Conditions, string(v1alpha1.ConditionFinished))
	if !ended || shown || !owned && c.Owner != "" || r.config.Stagger == 0 {
		return false, 0
	}
	wait = r.objects.ends.left(client.ObjectKey{Namespace: s.name.Namespace, Name: s.key}, r.Clock.Now(), jitter(ownersTurn))
	return wait > 0, wait
}

// ownersTurn is how long other replicas leave the end of a claim to its owner's.
const ownersTurn = time.Second

// fail lets a new object say why it has no status, and returns the error.
func (r *WorkClaimReconciler) fail(ctx context.Context, s *claimScope, err error) error {
	if s.refusal = unrecorded(s.claim, err); s.refusal == nil {
		return err
	}
	ctx, cancel := telling(ctx)
	defer cancel()
	_, showErr := r.show(ctx, s)
	return errors.Join(err, showErr)
}

// show writes the status.
func (r *WorkClaimReconciler) show(ctx context.Context, s *claimScope) (ctrl.Result, error) {
	owns, waits := r.workers.Owns(s.name.Namespace, s.key)
	if elsewhere, wait := r.elsewhere(s, owns); elsewhere {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	snapshot := s.snapshot
	if s.conflict {
		snapshot = nil
	}
	if wait := r.stagger(s.claim, s.key); wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	old := &s.claim.Status
	status := projection.WorkClaim(old, projection.ClaimFacts{
		Generation: s.claim.Generation, Key: s.key, Cluster: r.config.Cluster, Snapshot: snapshot, Doubts: s.doubts,
		Refusal: s.refusal, Twin: s.twin, PodLimit: waits.Limit, PodCause: waits.Cause, Now: r.Clock.Now(),
	})
	final := projection.ClaimFinal(snapshot) && s.doubts == nil
	written, wait, err := r.status.write(ctx, s.claim, *old, status, final)
	if err != nil {
		return ctrl.Result{}, err
	}
	if written {
		r.announce(s.claim, projection.ReadyOf(old.Conditions), projection.ReadyOf(status.Conditions))
	}
	if wait > 0 {
		return ctrl.Result{RequeueAfter: wait}, nil
	}
	if s.doubts != nil {
		return ctrl.Result{RequeueAfter: jitter(doubtRetry)}, nil
	}
	if snapshot != nil && s.twin == "" {
		r.shown.Shown(bmdb.Pending{Kind: bmdb.KindClaim, Pool: s.name.Namespace, ID: s.key, Rev: snapshot.Rev})
	}
	if final {
		return r.afterwards(ctx, s)
	}
	if s.conflict {
		s.again = jitter(conflictRetry)
	}
	return ctrl.Result{RequeueAfter: s.again}, nil
}

// afterwards frees the object of a claim that is over, and deletes it when its time has come.
func (r *WorkClaimReconciler) afterwards(ctx context.Context, s *claimScope) (ctrl.Result, error) {
	if controllerutil.ContainsFinalizer(s.claim, FinalizerWork) {
		if s.snapshot.Active > 0 || r.workers.Holds(s.name.Namespace, s.key) {
			return ctrl.Result{RequeueAfter: jitter(deletePoll)}, nil
		}
		if err := r.objects.letGo(ctx, s.claim); err != nil {
			return ctrl.Result{}, err
		}
	}
	if s.claim.Spec.TTLSecondsAfterFinished == nil || s.snapshot.CompletedAt == nil {
		return ctrl.Result{}, nil
	}
	from := *s.snapshot.CompletedAt
	if created := s.claim.CreationTimestamp.Time; created.After(from) {
		from = created
	}
	left := from.Add(time.Duration(*s.claim.Spec.TTLSecondsAfterFinished) * time.Second).Sub(r.Clock.Now())
	if left > 0 {
		return ctrl.Result{RequeueAfter: left}, nil
	}
	err := r.Client.Delete(ctx, s.claim, client.Preconditions{UID: &s.claim.UID})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return ctrl.Result{}, fmt.Errorf("delete finished WorkClaim %s: %w", s.name, err)
	}
	return ctrl.Result{}, nil
}
