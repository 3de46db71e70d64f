// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// requestsAtOnce keeps the making of many objects from being all that the API server does.
const requestsAtOnce = 8

// simulated is a provider of machines that do not exist.
func (l *lab) simulated(name string, s v1alpha1.SimulatedProvider) *v1alpha1.ProviderConfig {
	return &v1alpha1.ProviderConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: name},
		Spec:       v1alpha1.ProviderConfigSpec{Type: v1alpha1.ProviderTypeSimulated, Simulated: &s},
	}
}

// latency is a simulated provider's time for each work.
func latency(d time.Duration) v1alpha1.SimulatedProvider {
	return v1alpha1.SimulatedProvider{LatencyMilliseconds: ptr.To(int32(d.Milliseconds()))}
}

// machine is a machine of a provider, with its name as its identity.
func (l *lab) machine(name, provider string) *v1alpha1.Machine {
	return &v1alpha1.Machine{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: name},
		Spec:       v1alpha1.MachineSpec{ProviderRef: v1alpha1.ProviderConfigReference{Name: provider}, ProviderID: name},
	}
}

// claim orders AgentStart, once, on machines by name; failures are tried again after a second at most.
func (l *lab) claim(name string, machines ...string) *v1alpha1.WorkClaim {
	return &v1alpha1.WorkClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: name},
		Spec: v1alpha1.WorkClaimSpec{
			Process: v1alpha1.ProcessAgentStart, Mode: v1alpha1.WorkModeOnce, Machines: v1alpha1.MachineSelection{Names: machines},
			Parallelism: int32(max(len(machines), 1)), Backoff: v1alpha1.WorkBackoff{InitialSeconds: 1, MaximumSeconds: 1},
		},
	}
}

// names are n names with a prefix.
func names(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s-%03d", prefix, i)
	}
	return list
}

// create makes objects, several at once.
func (l *lab) create(objects ...client.Object) {
	l.t.Helper()
	if err := createAll(l.t.Context(), l.client, objects); err != nil {
		l.t.Fatal(err)
	}
}

func createAll(ctx context.Context, c client.Client, objects []client.Object) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(requestsAtOnce)
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

// remove deletes objects without waiting for their end.
func (l *lab) remove(objects ...client.Object) {
	l.t.Helper()
	for _, o := range objects {
		if err := l.client.Delete(l.t.Context(), o); client.IgnoreNotFound(err) != nil {
			l.t.Fatalf("delete %T %s: %v", o, o.GetName(), err)
		}
	}
}

// awaitGone waits for the end of objects that were deleted.
func (l *lab) awaitGone(objects ...client.Object) {
	l.t.Helper()
	for _, o := range objects {
		l.eventually(patience, fmt.Sprintf("%T %s is gone", o, o.GetName()), func(ctx context.Context) error {
			there, ok := o.DeepCopyObject().(client.Object)
			if !ok {
				return fmt.Errorf("%T is no object", o)
			}
			err := l.client.Get(ctx, client.ObjectKeyFromObject(o), there)
			if apierrors.IsNotFound(err) {
				return nil
			}
			return errors.Join(err, fmt.Errorf("it is there, with finalizers %v", there.GetFinalizers()))
		})
	}
}

// createFleet makes machines of a provider and waits until the database knows them.
func (l *lab) createFleet(provider string, machines ...string) {
	l.t.Helper()
	objects := make([]client.Object, 0, len(machines))
	for _, name := range machines {
		objects = append(objects, l.machine(name, provider))
	}
	l.create(objects...)
	l.awaitRecorded(provider, len(machines))
}

// awaitRecorded waits until n machines of a provider show that the database knows them.
func (l *lab) awaitRecorded(provider string, n int) {
	l.t.Helper()
	l.eventually(patience, "all machines are recorded", func(ctx context.Context) error {
		var list v1alpha1.MachineList
		if err := l.client.List(ctx, &list, client.InNamespace(l.namespace)); err != nil {
			return err
		}
		recorded := 0
		for _, m := range list.Items {
			if m.Spec.ProviderRef.Name == provider && m.Status.MachineID != "" && conditionIs(m.Status.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonRecorded) {
				recorded++
			}
		}
		if recorded < n {
			return fmt.Errorf("%d of %d machines of provider %s are", recorded, n, provider)
		}
		return nil
	})
}

// readClaim returns a claim as the API server has it.
func (l *lab) readClaim(ctx context.Context, name string) (*v1alpha1.WorkClaim, error) {
	var c v1alpha1.WorkClaim
	if err := l.client.Get(ctx, client.ObjectKey{Namespace: l.namespace, Name: name}, &c); err != nil {
		return nil, err
	}
	return &c, nil
}

// readMachine returns a machine as the API server has it.
func (l *lab) readMachine(ctx context.Context, name string) (*v1alpha1.Machine, error) {
	var m v1alpha1.Machine
	if err := l.client.Get(ctx, client.ObjectKey{Namespace: l.namespace, Name: name}, &m); err != nil {
		return nil, err
	}
	return &m, nil
}

// awaitClaim waits until a claim's condition Ready has a reason, and returns the claim.
func (l *lab) awaitClaim(name string, reason v1alpha1.Reason) *v1alpha1.WorkClaim {
	l.t.Helper()
	var claim *v1alpha1.WorkClaim
	l.eventually(patience, fmt.Sprintf("claim %s says %s", name, reason), func(ctx context.Context) (err error) {
		if claim, err = l.readClaim(ctx, name); err != nil {
			return err
		}
		if !conditionIs(claim.Status.Conditions, v1alpha1.ConditionReady, reason) {
			return fmt.Errorf("it says %s", describe(claim.Status.Conditions))
		}
		return nil
	})
	return claim
}

// awaitMachine waits until a machine's condition Ready has a reason, and returns the machine.
func (l *lab) awaitMachine(name string, reason v1alpha1.Reason) *v1alpha1.Machine {
	l.t.Helper()
	var machine *v1alpha1.Machine
	l.eventually(patience, fmt.Sprintf("machine %s says %s", name, reason), func(ctx context.Context) (err error) {
		if machine, err = l.readMachine(ctx, name); err != nil {
			return err
		}
		if !conditionIs(machine.Status.Conditions, v1alpha1.ConditionReady, reason) {
			return fmt.Errorf("it says %s", describe(machine.Status.Conditions))
		}
		return nil
	})
	return machine
}

// condition returns a condition; the zero one if it is not there.
func condition(list []metav1.Condition, kind v1alpha1.ConditionType) metav1.Condition {
	if c := meta.FindStatusCondition(list, string(kind)); c != nil {
		return *c
	}
	return metav1.Condition{}
}

func conditionIs(list []metav1.Condition, kind v1alpha1.ConditionType, reason v1alpha1.Reason) bool {
	return condition(list, kind).Reason == string(reason)
}

func isTrue(list []metav1.Condition, kind v1alpha1.ConditionType) bool {
	return meta.IsStatusConditionTrue(list, string(kind))
}

func describe(list []metav1.Condition) string {
	c := condition(list, v1alpha1.ConditionReady)
	return fmt.Sprintf("Ready=%s, %s: %s", c.Status, c.Reason, c.Message)
}

func key(o client.Object) client.ObjectKey { return client.ObjectKeyFromObject(o) }
