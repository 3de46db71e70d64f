// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/predicate"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

// statusWiped lets updates pass that took away what the operator wrote: it is written again.
func statusWiped() predicate.Predicate {
	return predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return true }, DeleteFunc: func(event.DeleteEvent) bool { return true },
		GenericFunc: func(event.GenericEvent) bool { return true },
		UpdateFunc: func(e event.UpdateEvent) bool {
			return readyOf(e.ObjectOld).Status != "" && readyOf(e.ObjectNew).Status == ""
		},
	}
}

// toLetGo lets updates pass of claims that begin to be deleted, and of those that are over and have our finalizer still, but for the updates that this
// replica has made itself: it goes on by itself.
func (o *Objects) toLetGo() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		claim, ok := e.ObjectNew.(*v1alpha1.WorkClaim)
		if !ok {
			return false
		}
		over := meta.IsStatusConditionTrue(claim.Status.Conditions, string(v1alpha1.ConditionFinished))
		return e.ObjectOld.GetDeletionTimestamp().IsZero() && !claim.DeletionTimestamp.IsZero() || over && controllerutil.ContainsFinalizer(claim, FinalizerWork) && !o.copies.ours(claim)
	}}
}

// readyChanged lets only updates pass that changed whether an object is Ready.
func readyChanged() predicate.Predicate {
	return predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		return readyOf(e.ObjectOld).Status != readyOf(e.ObjectNew).Status
	}}
}

func readyOf(object client.Object) projection.Ready {
	switch o := object.(type) {
	case *v1alpha1.Machine:
		return projection.ReadyOf(o.Status.Conditions)
	case *v1alpha1.WorkClaim:
		return projection.ReadyOf(o.Status.Conditions)
	case *v1alpha1.ProviderConfig:
		return projection.ReadyOf(o.Status.Conditions)
	default:
		return projection.Ready{}
	}
}
