// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr/testr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/controllers"
)

// answers is an API server that gives one answer after the other about namespace kube-system, the last of them for ever.
type answers struct {
	client.Reader
	left  []func(ctx context.Context) (types.UID, error)
	asked []time.Time
}

func (a *answers) Get(ctx context.Context, _ client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	a.asked = append(a.asked, time.Now())
	answer := a.left[0]
	if len(a.left) > 1 {
		a.left = a.left[1:]
	}
	uid, err := answer(ctx)
	object.(*corev1.Namespace).UID = uid
	return err
}

func uid(uid types.UID) func(context.Context) (types.UID, error) {
	return func(context.Context) (types.UID, error) { return uid, nil }
}

// TestProcessEndsWithAnotherAPIServer: an operator that runs looks now and then which API server it has, and ends when that is another one.
// That it got no answer, or none that says which, ends nothing.
func TestProcessEndsWithAnotherAPIServer(t *testing.T) {
	refused := func(err error) func(context.Context) (types.UID, error) {
		return func(context.Context) (types.UID, error) { return "", err }
	}
	hangs := func(ctx context.Context) (types.UID, error) {
		<-ctx.Done()
		return "", ctx.Err()
	}
	namespaces := schema.GroupResource{Resource: "namespaces"}
	noAnswers := []func(context.Context) (types.UID, error){
		uid("one"), refused(errors.New("connection refused")), hangs, refused(apierrors.NewNotFound(namespaces, "kube-system")),
		refused(apierrors.NewForbidden(namespaces, "kube-system", nil)), refused(apierrors.NewUnauthorized("who are you")), uid("one"),
	}
	synctest.Test(t, func(t *testing.T) {
		server, began := &answers{left: append(noAnswers, uid("two"))}, time.Now()
		err := controllers.NewOriginWatch(server, "one", testr.New(t)).Start(t.Context())
		if !errors.Is(err, controllers.ErrAnotherAPIServer) || !strings.Contains(err.Error(), "was one and is two") {
			t.Errorf("with another API server: %v", err)
		}
		if looks := len(noAnswers) + 1; len(server.asked) != looks {
			t.Errorf("it looked %d times, want %d", len(server.asked), looks)
		}
		before := began
		for _, at := range server.asked {
			// The longest: a timeout after a look that got no answer.
			if wait := at.Sub(before); wait < 10*time.Second || wait > time.Minute {
				t.Errorf("it looked %s after the look before", wait)
			}
			before = at
		}
	})
}

// TestProcessStaysWithItsAPIServer: with the same API server, or when it was not known at the start which it was, it ends with its context only.
func TestProcessStaysWithItsAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
		defer cancel()
		server := &answers{left: []func(context.Context) (types.UID, error){uid("one")}}
		if err := controllers.NewOriginWatch(server, "one", testr.New(t)).Start(ctx); err != nil || ctx.Err() == nil {
			t.Errorf("with the same API server: %v", err)
		}
		if n := len(server.asked); n < 60 || n > 240 {
			t.Errorf("in an hour it looked %d times", n)
		}
		unknown := &answers{left: server.left}
		if err := controllers.NewOriginWatch(unknown, "", testr.New(t)).Start(t.Context()); err != nil || len(unknown.asked) > 0 {
			t.Errorf("with an origin that is not known it looked %d times: %v", len(unknown.asked), err)
		}
	})
}
