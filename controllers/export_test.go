// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"

	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// ReleaseLater lets finalizers be taken as by a controller that runs, which has its turn when the returned function is called.
func ReleaseLater(o *Objects) (release func(ctx context.Context, name client.ObjectKey) error, stop func()) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[reconcile.Request]())
	o.releases.inbox.queue = queue
	return func(ctx context.Context, name client.ObjectKey) error {
		_, err := (&releaser{o}).Reconcile(ctx, ctrl.Request{NamespacedName: name})
		return err
	}, queue.ShutDown
}

// ReleaseAtTheEnd takes the finalizers that wait, as a process that ends does.
func ReleaseAtTheEnd(o *Objects) error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return (&releaser{o}).Start(ctx)
}
