// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	ac "github.com/bmdb-dev/bmdb-operator/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

const (
	// FinalizerWork is on a WorkClaim while pods of this cluster may hold machines for it, and for a while after its end.
	FinalizerWork = "bmdb.dev/work"
	// AnnotationTerm is beside it, and names the last owner's term that relies on it. Each term writes it before its first start, so that who
	// takes the finalizer for an earlier one is refused by the API server, or sees that it is not his any more.
	AnnotationTerm = "bmdb.dev/work-term"
)

// freshTries is how often a write is made again, from the latest copy of an object that others have written to in between.
const freshTries = 5

// termOf returns the term that relies on a claim's finalizer. 0: none is known.
func termOf(claim *v1alpha1.WorkClaim) int64 {
	epoch, err := strconv.ParseInt(claim.Annotations[AnnotationTerm], 10, 64)
	if err != nil {
		return 0
	}
	return epoch
}

// Admit implements worker.Objects: while a machine is held for a claim, the claim's object has a finalizer, so that its deletion is seen.
func (o *Objects) Admit(ctx context.Context, term worker.Term, current func(ctx context.Context) error) error {
	if !o.config.serves(term.Pool) {
		return worker.ErrGone
	}
	list, err := claimsOf(ctx, o.client, term.Pool, term.Key)
	if err != nil {
		return err
	}
	if len(list) == 0 {
		if _, err := o.claimChanged(ctx, term.Pool, term.Key, 0); err != nil {
			return err
		}
		return worker.ErrGone
	}
	claim := latest(&o.copies, &list[0], o.clock.Now())
	for range freshTries {
		if claim.DeletionTimestamp != nil {
			return worker.ErrGone
		}
		has := termOf(claim)
		if term.Admitted && has == term.Epoch && controllerutil.ContainsFinalizer(claim, FinalizerWork) {
			return nil
		}
		if has > term.Epoch {
			// Another pod's, or written with a copy of another object or another database.
			if err := current(ctx); err != nil {
				return err
			}
		}
		if err = o.addFinalizer(ctx, claim, term.Epoch); !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			break
		}
		fresh, gone := o.read(ctx, claim)
		if gone != nil {
			return gone
		}
		claim = fresh
	}
	if err != nil {
		return fmt.Errorf("add finalizer to WorkClaim %s/%s: %w", term.Pool, claim.Name, err)
	}
	return nil
}

// Idle implements worker.Objects.
func (o *Objects) Idle(ctx context.Context, term worker.Term) (bool, error) {
	list, err := claimsOf(ctx, o.client, term.Pool, term.Key)
	if err != nil {
		return false, err
	}
	// Of one that is being deleted the controller takes it, once it was detached.
	ours := func(claim *v1alpha1.WorkClaim) bool {
		return claim.DeletionTimestamp == nil && termOf(claim) <= term.Epoch
	}
	for i := range list {
		claim := latest(&o.copies, &list[i], o.clock.Now())
		if term.Admitted && !controllerutil.ContainsFinalizer(claim, FinalizerWork) {
			// The cache may not show yet what this term has written.
			if claim, err = o.read(ctx, claim); errors.Is(err, worker.ErrGone) {
				continue
			} else if err != nil {
				return false, err
			}
		}
		if !ours(claim) || !controllerutil.ContainsFinalizer(claim, FinalizerWork) {
			continue
		}
		snapshot, err := o.store.ClaimSnapshot(ctx, term.Pool, term.Key, bmdb.ClaimLimits{})
		switch {
		case err != nil && !errors.Is(err, bmdb.ErrNoSuchClaim):
			return false, err
		case err == nil && snapshot.Active > 0:
			return false, nil
		}
		if doubts, err := o.doubts(ctx, term.Pool); err != nil || doubts.wait > 0 {
			return false, err
		}
		if err := o.free(ctx, claim, ours); err != nil {
			return false, err
		}
	}
	return true, nil
}

// +kubebuilder:rbac:groups=bmdb.dev,resources=workclaims,verbs=get;list;watch;patch;delete
// +kubebuilder:rbac:groups=bmdb.dev,resources=workclaims/status,verbs=patch

// addFinalizer adds our finalizer for a term. The UID keeps it from making an object that is gone, the resource version from overwriting
// what another term has written.
func (o *Objects) addFinalizer(ctx context.Context, claim *v1alpha1.WorkClaim, epoch int64) error {
	term := strconv.FormatInt(epoch, 10)
	configuration := ac.WorkClaim(claim.Name, claim.Namespace).WithUID(claim.UID).WithResourceVersion(claim.ResourceVersion).
		WithFinalizers(FinalizerWork).WithAnnotations(map[string]string{AnnotationTerm: term})
	if err := o.client.Apply(ctx, configuration, FieldOwner, client.ForceOwnership); err != nil {
		return err
	}
	after := claim.DeepCopy()
	after.ResourceVersion = value(configuration.ResourceVersion)
	controllerutil.AddFinalizer(after, FinalizerWork)
	metav1.SetMetaDataAnnotation(&after.ObjectMeta, AnnotationTerm, term)
	o.copies.wrote(claim, after, o.clock.Now())
	o.releases.stir(o.clock.Now())
	return nil
}

// always lets a finalizer be taken that no term relies on.
func always(*v1alpha1.WorkClaim) bool { return true }

// free removes our finalizer if the object has it, as long as its latest state may be freed.
func (o *Objects) free(ctx context.Context, claim *v1alpha1.WorkClaim, may func(*v1alpha1.WorkClaim) bool) error {
	var err error
	claim = latest(&o.copies, claim, o.clock.Now())
	for range freshTries {
		if !may(claim) || !controllerutil.ContainsFinalizer(claim, FinalizerWork) {
			return nil
		}
		// By a patch and not by applying without it: a manifest that was copied while work went on makes somebody else its owner too.
		freed := claim.DeepCopy()
		controllerutil.RemoveFinalizer(freed, FinalizerWork)
		delete(freed.Annotations, AnnotationTerm)
		err = o.client.Patch(ctx, freed, client.MergeFromWithOptions(claim, client.MergeFromWithOptimisticLock{}), FieldOwner)
		if err == nil {
			o.copies.wrote(claim, freed, o.clock.Now())
		}
		if !apierrors.IsConflict(err) {
			break
		}
		fresh, gone := o.read(ctx, claim)
		if errors.Is(gone, worker.ErrGone) {
			return nil
		} else if gone != nil {
			return gone
		}
		claim = fresh
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("remove finalizer of WorkClaim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return nil
}

// read reads an object from the API server. ErrGone: it is not there any more, or another one of its name is.
func (o *Objects) read(ctx context.Context, known *v1alpha1.WorkClaim) (*v1alpha1.WorkClaim, error) {
	claim := &v1alpha1.WorkClaim{}
	switch err := o.live.Get(ctx, client.ObjectKeyFromObject(known), claim); {
	case apierrors.IsNotFound(err) || err == nil && claim.UID != known.UID:
		return nil, worker.ErrGone
	case err != nil:
		return nil, fmt.Errorf("get WorkClaim %s/%s from the API server: %w", known.Namespace, known.Name, err)
	}
	return claim, nil
}
