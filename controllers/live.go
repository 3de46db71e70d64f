// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

var (
	// ErrNotServed is returned for an object of a kind that the API server does not know: its CustomResourceDefinition is missing. That says
	// nothing of the object.
	ErrNotServed = errors.New("the API server does not serve the kind")
	// ErrAnotherAPIServer is returned for an object that is not there, by an API server that is not the one that the operator began with; and
	// by OriginWatch, which ends the process with it.
	ErrAnotherAPIServer = errors.New("the API server is another one than when the operator started")
)

// live reads from the API server for those who act on what is not there. It is safe for concurrent use.
type live struct {
	client.Reader
	origin string
}

// NewLive returns a reader whose NotFound means that the object was there and is gone, or never was: not that its kind is missing, and not that
// the API server was replaced by another one than that of the origin, or emptied. origin is what OriginOf returned at the start; empty: not known.
func NewLive(reader client.Reader, origin string) client.Reader {
	return &live{Reader: reader, origin: origin}
}

// Get implements client.Reader.
func (l *live) Get(ctx context.Context, key client.ObjectKey, object client.Object, opts ...client.GetOption) error {
	err := l.Reader.Get(ctx, key, object, opts...)
	switch {
	case meta.IsNoMatchError(err), apierrors.IsNotFound(err) && apierrors.IsUnexpectedServerError(err):
		return fmt.Errorf("%w: %v", ErrNotServed, err) //nolint:errorlint // It must not be taken for a NotFound of the object.
	case !apierrors.IsNotFound(err) || l.origin == "":
		return err
	}
	origin, originErr := OriginOf(ctx, l.Reader)
	switch {
	case originErr == nil && origin == l.origin:
		return err
	case originErr == nil || apierrors.IsNotFound(originErr):
		return fmt.Errorf("%w: %v", ErrAnotherAPIServer, err) //nolint:errorlint // As above.
	default:
		return fmt.Errorf("find out which API server has no %s: %v", key, originErr) //nolint:errorlint // As above.
	}
}

// +kubebuilder:rbac:groups="",resources=namespaces,resourceNames=kube-system,verbs=get

// OriginOf returns what tells an API server from others: the UID of a namespace that each has, and that cannot be deleted.
func OriginOf(ctx context.Context, reader client.Reader) (string, error) {
	var namespace corev1.Namespace
	if err := reader.Get(ctx, client.ObjectKey{Name: metav1.NamespaceSystem}, &namespace); err != nil {
		return "", fmt.Errorf("get namespace %s: %w", metav1.NamespaceSystem, err)
	}
	return string(namespace.UID), nil
}
