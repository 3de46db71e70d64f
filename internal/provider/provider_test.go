// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

type driver struct{ provider.AgentStarter }

func (driver) Close() error { return nil }

func TestRegistryOpen(t *testing.T) {
	plain := errors.New("plain")
	typed := &provider.Error{Reason: provider.ReasonAddressMissing, Message: "typed"}
	r := provider.Registry[int]{
		"Good":  func(int) (provider.Driver, error) { return driver{}, nil },
		"Plain": func(int) (provider.Driver, error) { return nil, plain },
		"Typed": func(int) (provider.Driver, error) { return nil, typed },
	}
	for _, test := range []struct {
		name, reason, message string
		is                    error
	}{
		{name: "Good"},
		{name: "Plain", reason: provider.ReasonConfigInvalid, is: plain, message: "open provider of type Plain: plain"},
		{name: "Typed", reason: provider.ReasonAddressMissing, is: typed, message: "open provider of type Typed: typed"},
		{name: "None", reason: provider.ReasonTypeUnknown, message: `provider type "None" is not available here (available: Good, Plain, Typed)`},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, err := r.Open(test.name, 0)
			if got := provider.ReasonOf(err); got != test.reason {
				t.Fatalf("reason is %q, want %q (%v)", got, test.reason, err)
			}
			if (d != nil) != (err == nil) {
				t.Fatalf("driver %v with error %v", d, err)
			}
			if test.is != nil && !errors.Is(err, test.is) {
				t.Errorf("%v does not wrap %v", err, test.is)
			}
			if err != nil && err.Error() != test.message {
				t.Errorf("message is %q, want %q", err, test.message)
			}
		})
	}
	if got := (provider.Registry[int])(nil).Types(); len(got) != 0 {
		t.Errorf("types of a nil registry: %v", got)
	}
	if got, want := r.Types(), []string{"Good", "Plain", "Typed"}; !reflect.DeepEqual(got, want) {
		t.Errorf("types are %v, want %v", got, want)
	}
}

func TestErrorIsFoundWhenWrapped(t *testing.T) {
	err := fmt.Errorf("start agent: %w", &provider.Error{Reason: provider.ReasonNeedsSudo, Message: "no sudo", NeedsPerson: true})
	if provider.ReasonOf(err) != provider.ReasonNeedsSudo || !provider.NeedsPerson(err) {
		t.Errorf("reason %q, needs person %v", provider.ReasonOf(err), provider.NeedsPerson(err))
	}
	if provider.ReasonOf(context.Canceled) != "" || provider.NeedsPerson(nil) {
		t.Error("an error without a reason has one")
	}
}

func TestContextErrorWrapsBoth(t *testing.T) {
	cause := errors.New("work lost")
	ctx, cancel := context.WithCancelCause(context.Background())
	if err := provider.ContextError(ctx, "wait"); err != nil {
		t.Fatalf("context lives, error %v", err)
	}
	cancel(cause)
	err := provider.ContextError(ctx, "wait")
	if !errors.Is(err, context.Canceled) || !errors.Is(err, cause) {
		t.Errorf("%v wraps not both", err)
	}
	plain, cancelPlain := context.WithCancel(context.Background())
	cancelPlain()
	if got := provider.ContextError(plain, "wait").Error(); got != "wait: context canceled" {
		t.Errorf("message is %q", got)
	}
}
