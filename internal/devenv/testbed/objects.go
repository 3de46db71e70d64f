// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// Hanging is a provider whose machines never come to an end by themselves.
func Hanging() v1alpha1.SimulatedProvider {
	return v1alpha1.SimulatedProvider{HangPercent: ptr.To[int32](100)}
}

// RequestsAtOnce keeps the making of many objects from being all that the API server does.
const RequestsAtOnce = 8

// Simulated is a provider of machines that do not exist.
func (l *Lab) Simulated(name string, s v1alpha1.SimulatedProvider) *v1alpha1.ProviderConfig {
	return &v1alpha1.ProviderConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: name},
		Spec:       v1alpha1.ProviderConfigSpec{Type: v1alpha1.ProviderTypeSimulated, Simulated: &s},
	}
}

// Latency is a simulated provider's time for each work.
func Latency(d time.Duration) v1alpha1.SimulatedProvider {
	return v1alpha1.SimulatedProvider{LatencyMilliseconds: ptr.To(int32(d.Milliseconds()))}
}

// Machine is a machine of a provider, with its name as its identity.
func (l *Lab) Machine(name, provider string) *v1alpha1.Machine {
	return &v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: name},
		Spec:       v1alpha1.MachineSpec{ProviderRef: v1alpha1.ProviderConfigReference{Name: provider}, ProviderID: name},
	}
}

// Claim orders AgentStart, once, on machines by name; failures are tried again after a second at most.
func (l *Lab) Claim(name string, machines ...string) *v1alpha1.WorkClaim {
	return &v1alpha1.WorkClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: name},
		Spec: v1alpha1.WorkClaimSpec{
			Process: v1alpha1.ProcessAgentStart, Mode: v1alpha1.WorkModeOnce, Machines: v1alpha1.MachineSelection{Names: machines},
			Parallelism: int32(max(len(machines), 1)), Backoff: v1alpha1.WorkBackoff{InitialSeconds: 1, MaximumSeconds: 1},
		},
	}
}

// Names are n names with a prefix.
func Names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s-%03d", prefix, i)
	}
	return list
}

// Create makes objects, several at once.
func (l *Lab) Create(objects ...client.Object) {
	l.T.Helper()
	if err := CreateAll(l.T.Context(), l.Client, objects); err != nil {
		l.T.Fatal(err)
	}
}

// CreateAll makes objects, several at once. It is safe for concurrent use.
func CreateAll(ctx context.Context, c client.Client, objects []client.Object) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(RequestsAtOnce)
	for _, o := range objects {
		group.Go(func() error {
			if err := c.Create(ctx, o); err != nil {
				return fmt.Errorf("create %T %s: %w", o, o.GetName(), err)
			}
			return nil
		})
	}
	return group.Wait()
}

// Remove deletes objects without waiting for their end.
func (l *Lab) Remove(objects ...client.Object) {
	l.T.Helper()
	for _, o := range objects {
		if err := l.Client.Delete(l.T.Context(), o); client.IgnoreNotFound(err) != nil {
			l.T.Fatalf("delete %T %s: %v", o, o.GetName(), err)
		}
	}
}

// AwaitGone waits for the end of objects that were deleted.
func (l *Lab) AwaitGone(objects ...client.Object) {
	l.T.Helper()
	for _, o := range objects {
		l.Eventually(Patience, fmt.Sprintf("%T %s is gone", o, o.GetName()), func(ctx context.Context) error {
			there, ok := o.DeepCopyObject().(client.Object)
			if !ok {
				return fmt.Errorf("%T is no object", o)
			}
			err := l.Client.Get(ctx, client.ObjectKeyFromObject(o), there)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, fmt.Errorf("it is there, with finalizers %v", there.GetFinalizers()))
		})
	}
}

// CreateFleet makes machines of a provider and waits until the database knows them.
func (l *Lab) CreateFleet(provider string, machines ...string) {
	l.T.Helper()
	objects := make([]client.Object, 0, len(machines))
	for _, name := range machines {
		objects = append(objects, l.Machine(name, provider))
	}
	l.Create(objects...)
	l.AwaitRecorded(provider, len(machines))
}

// AwaitRecorded waits until n machines of a provider show that the database knows them.
func (l *Lab) AwaitRecorded(provider string, n int) {
	l.T.Helper()
	const each = 50 * time.Millisecond
	l.Eventually(max(Patience, time.Duration(n)*each), "all machines are recorded", func(ctx context.Context) error {
		var list v1alpha1.MachineList
		if err := l.Client.List(ctx, &list, client.InNamespace(l.Namespace)); err != nil {
			return err
		}
		recorded := 0
		for _, m := range list.Items {
			if m.Spec.ProviderRef.Name == provider && m.Status.MachineID != "" && ConditionIs(m.Status.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonRecorded) {
				recorded++
			}
		}
		if recorded < n {
			return fmt.Errorf("%d of %d machines of provider %s are", recorded, n, provider)
		}
		return nil
	})
}

// ReadClaim returns a claim as the API server has it.
func (l *Lab) ReadClaim(ctx context.Context, name string) (*v1alpha1.WorkClaim, error) {
	var c v1alpha1.WorkClaim
	if err := l.Client.Get(ctx, client.ObjectKey{Namespace: l.Namespace, Name: name}, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// ReadMachine returns a machine as the API server has it.
func (l *Lab) ReadMachine(ctx context.Context, name string) (*v1alpha1.Machine, error) {
	var m v1alpha1.Machine
	if err := l.Client.Get(ctx, client.ObjectKey{Namespace: l.Namespace, Name: name}, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

// AwaitClaim waits until a claim's condition Ready has a reason, and returns the claim.
func (l *Lab) AwaitClaim(name string, reason v1alpha1.Reason) *v1alpha1.WorkClaim {
	l.T.Helper()
	var claim *v1alpha1.WorkClaim
	l.Eventually(Patience, fmt.Sprintf("claim %s says %s", name, reason), func(ctx context.Context) (err error) {
		if claim, err = l.ReadClaim(ctx, name); err != nil {
			return err
		}
		if !ConditionIs(claim.Status.Conditions, v1alpha1.ConditionReady, reason) {
			return fmt.Errorf("it says %s", Describe(claim.Status.Conditions))
		}
		return nil
	})
	return claim
}

// AwaitMachine waits until a machine's condition Ready has a reason, and returns the machine.
func (l *Lab) AwaitMachine(name string, reason v1alpha1.Reason) *v1alpha1.Machine {
	l.T.Helper()
	var machine *v1alpha1.Machine
	l.Eventually(Patience, fmt.Sprintf("machine %s says %s", name, reason), func(ctx context.Context) (err error) {
		if machine, err = l.ReadMachine(ctx, name); err != nil {
			return err
		}
		if !ConditionIs(machine.Status.Conditions, v1alpha1.ConditionReady, reason) {
			return fmt.Errorf("it says %s", Describe(machine.Status.Conditions))
		}
		return nil
	})
	return machine
}
