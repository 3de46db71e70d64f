// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package drivers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/drivers"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

const namespace = "metal"

func newClient(t *testing.T, fail error, objects ...client.Object) client.WithWatch {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).WithInterceptorFuncs(interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			if _, ok := o.(*corev1.Secret); ok && fail != nil {
				return fail
			}
			return c.Get(ctx, key, o, opts...)
		},
	}).Build()
}

func sshConfig() *v1alpha1.ProviderConfig {
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: "lab", Namespace: namespace}}
	p.Spec.Type = v1alpha1.ProviderTypeSSH
	p.Spec.SSH = v1alpha1.SSHProvider{
		User: "root", PrivateKeySecretRef: v1alpha1.SecretKeyReference{Name: "key", Key: "k"},
		HostKeys: v1alpha1.SSHHostKeys{Policy: v1alpha1.HostKeyPolicyTrustOnFirstUse},
	}
	return p
}

func opener(t *testing.T, fail error, objects ...client.Object) *drivers.Opener {
	t.Helper()
	c := newClient(t, fail, objects...)
	return drivers.NewOpener(c, c, drivers.NewRegistry(ssh.AgentFiles(t.TempDir()), false))
}

// TestWhatPassesIsNoRefusal: only what needs a person makes a provider not ready; an API server that does not answer does not.
func TestWhatPassesIsNoRefusal(t *testing.T) {
	secrets := schema.GroupResource{Resource: "secrets"}
	for _, test := range []struct {
		name   string
		fail   error
		reason v1alpha1.Reason
	}{
		{"missing", nil, v1alpha1.ReasonSecretMissing},
		{"forbidden", apierrors.NewForbidden(secrets, "key", errors.New("no role")), v1alpha1.ReasonSecretMissing},
		{"timeout", apierrors.NewTimeoutError("slow", 1), ""},
		{"no connection", errors.New("connection refused"), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := opener(t, test.fail, sshConfig()).Open(t.Context(), namespace, "lab")
			var refused *drivers.NotReadyError
			if got := errors.As(err, &refused); err == nil || got != (test.reason != "") {
				t.Fatalf("error is %v", err)
			}
			if test.reason != "" && (refused.Reason != test.reason || refused.Provider != "lab") {
				t.Errorf("refused with %s of %s: %s", refused.Reason, refused.Provider, refused.Message)
			}
		})
	}
}

func TestProviderThatIsNotThere(t *testing.T) {
	_, err := opener(t, nil).Open(t.Context(), namespace, "nowhere")
	var refused *drivers.NotReadyError
	if !errors.As(err, &refused) || refused.Reason != v1alpha1.ReasonProviderNotReady {
		t.Errorf("error is %v", err)
	}
}

func TestCandidates(t *testing.T) {
	machine := func(name, provider string) *v1alpha1.Machine {
		m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}}
		m.Spec.ProviderRef.Name = provider
		return m
	}
	other := sshConfig()
	other.Name = "other"
	o := opener(t, nil, machine("a", "lab"), machine("b", "lab"), machine("c", "attic"), sshConfig(), other)
	for _, test := range []struct {
		name string
		spec bmdb.ClaimSpec
		want []string
	}{
		{"by provider", bmdb.ClaimSpec{Provider: "lab", Names: []string{"c"}}, []string{"lab"}},
		{"by names", bmdb.ClaimSpec{Names: []string{"a", "b", "c", "nobody"}}, []string{"attic", "lab"}},
		{"by names that are not here", bmdb.ClaimSpec{Names: []string{"nobody"}}, []string{"lab", "other"}},
		{"by labels", bmdb.ClaimSpec{Selector: &bmdb.Selector{}}, []string{"lab", "other"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.spec.Pool = namespace
			got, err := o.Candidates(t.Context(), &test.spec)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("candidates (-want +got):\n%s", diff)
			}
		})
	}
}

// Who names many machines and asks again and again does not have them looked up each time; what changes is known a moment later.
func TestCandidatesAreRemembered(t *testing.T) {
	const machines = 1000
	names := make([]string, machines)
	for i := range names {
		names[i] = fmt.Sprintf("m-%d", i)
	}
	looks := 0
	c := interceptor.NewClient(newClient(t, nil, sshConfig()), interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			looks++
			return c.Get(ctx, key, o, opts...)
		},
	})
	o := drivers.NewOpener(c, c, drivers.NewRegistry(ssh.AgentFiles(t.TempDir()), false))
	ask := func(names ...string) []string {
		t.Helper()
		got, err := o.Candidates(t.Context(), &bmdb.ClaimSpec{Pool: namespace, Names: names})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for range 10 {
		ask(names...)
	}
	if looks != machines {
		t.Errorf("%d machines were looked up %d times in all", machines, looks)
	}
	few := names[:10]
	ask(few...)
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: few[0], Namespace: namespace}}
	m.Spec.ProviderRef.Name = "attic"
	if err := c.Create(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	tick, patience := time.NewTicker(time.Millisecond), time.After(5*time.Second)
	defer tick.Stop()
	for !slices.Equal(ask(few...), []string{"attic"}) {
		select {
		case <-tick.C:
		case <-patience:
			t.Fatal("a machine that came was not noticed")
		}
	}
}
