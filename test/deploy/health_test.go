// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/test/argocd"
)

// judged is an object that the operator wrote, and what is to be thought of it.
type judged struct {
	name   string
	object client.Object
	reason v1alpha1.Reason // of Ready
	flux   status.Status
	argo   argocd.Health
}

// TestHealthOfWhatTheOperatorWrites brings objects of all kinds into every state of the API's contract, by a deployed operator, and
// computes their health as Flux and as Argo CD do.
func TestHealthOfWhatTheOperatorWrites(t *testing.T) {
	l := newLab(t)
	checks, err := argocd.Shipped(moduleRoot(t))
	if err != nil {
		t.Fatal(err)
	}
	objects := l.states()
	l.judge(checks, "managed elsewhere", l.shown(), status.CurrentStatus, argocd.Healthy)
	for _, j := range objects {
		l.await(j.object, j.reason)
		l.judge(checks, j.name, j.object, j.flux, j.argo)
	}

	// What nobody has taken into account yet, whatever the operator said before.
	l.pod.terminate()
	for _, j := range objects {
		l.change(j.object)
		l.judge(checks, j.name+", and then changed", j.object, status.InProgressStatus, argocd.Progressing)
	}
	for _, fresh := range []client.Object{l.machine("fresh", "good"), l.claim("fresh", nil, "fresh"), l.provider("fresh", nil)} {
		l.judge(checks, "new", fresh, status.InProgressStatus, argocd.Progressing)
	}
	gone := l.claim("gone", func(c *v1alpha1.WorkClaim) { c.Finalizers = []string{"example.org/theirs"} }, "m")
	if err := l.client.Delete(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	l.judge(checks, "deleted", gone, status.TerminatingStatus, argocd.Progressing)
	if err := l.client.Patch(t.Context(), gone, client.RawPatch("application/merge-patch+json", []byte(`{"metadata": {"finalizers": null}}`))); err != nil {
		t.Fatal(err)
	}
}

// judge computes the health of an object as it is now.
func (l *lab) judge(checks argocd.Checks, name string, object client.Object, flux status.Status, argo argocd.Health) {
	l.t.Helper()
	gvk, err := l.client.GroupVersionKindFor(object)
	if err != nil {
		l.t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	if err := l.client.Get(l.t.Context(), client.ObjectKeyFromObject(object), u); err != nil {
		l.t.Fatal(err)
	}
	result, err := status.Compute(u)
	if err != nil {
		l.t.Fatal(err)
	}
	if result.Status != flux {
		l.t.Errorf("%s: kstatus says %s (%s), want %s", name, result.Status, result.Message, flux)
	}
	health, message, err := checks.Health(u)
	if err != nil {
		l.t.Fatal(err)
	}
	if health != argo {
		l.t.Errorf("%s: Argo CD says %s (%s), want %s", name, health, message, argo)
	}
}

// change changes an object's spec.
func (l *lab) change(object client.Object) {
	l.t.Helper()
	if err := l.client.Get(l.t.Context(), client.ObjectKeyFromObject(object), object); err != nil {
		l.t.Fatal(err)
	}
	switch o := object.(type) {
	case *v1alpha1.Machine:
		o.Spec.Address = "192.0.2.99:22"
	case *v1alpha1.WorkClaim:
		o.Spec.Parallelism++
	case *v1alpha1.ProviderConfig:
		o.Spec.Limits.Parallelism = new(int32(7))
	}
	if err := l.client.Update(l.t.Context(), object); err != nil {
		l.t.Fatal(err)
	}
}

// states makes objects that come into every state and stay there.
func (l *lab) states() []judged {
	l.t.Helper()
	full := int32(100)
	good := l.provider("good", nil)
	l.provider("hangs", func(s *v1alpha1.SimulatedProvider) { s.HangPercent = &full })
	l.provider("fails", func(s *v1alpha1.SimulatedProvider) { s.FailurePercent = &full })
	machines := map[string]*v1alpha1.Machine{}
	for name, provider := range map[string]string{
		"done": "good", "held": "good", "hangs1": "hangs", "hangs2": "hangs", "hangs3": "hangs", "fails1": "fails", "fails2": "fails", "fails3": "fails",
	} {
		machines[name] = l.machine(name, provider)
	}
	for _, m := range machines {
		l.await(m, v1alpha1.ReasonRecorded)
	}
	l.hold(machines["held"])
	copied := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: "copied"}}
	copied.Spec = machines["done"].Spec
	l.create(copied)
	complete := l.claim("complete", nil, "done")
	l.await(complete, v1alpha1.ReasonComplete)
	working := l.claim("working", nil, "hangs1")
	l.await(working, v1alpha1.ReasonWorking)
	return []judged{
		{"a machine", machines["done"], v1alpha1.ReasonRecorded, status.CurrentStatus, argocd.Healthy},
		{"a machine's copy", copied, v1alpha1.ReasonIdentityConflict, status.FailedStatus, argocd.Degraded},
		{"a provider", good, v1alpha1.ReasonRecorded, status.CurrentStatus, argocd.Healthy},
		{"a provider without its Secret", l.ssh(l.namespace), v1alpha1.ReasonSecretMissing, status.FailedStatus, argocd.Degraded},

		{"complete", complete, v1alpha1.ReasonComplete, status.CurrentStatus, argocd.Healthy},
		{"the key's other object", l.claim("twin", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "complete" }, "done"), v1alpha1.ReasonComplete, status.CurrentStatus, argocd.Healthy},
		{"the other object of a key that works", l.claim("works-too", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "working" }, "hangs1"),
			v1alpha1.ReasonManagedElsewhere, status.CurrentStatus, argocd.Healthy},
		{"continuous, works", l.claim("continuous", func(c *v1alpha1.WorkClaim) { c.Spec.Mode = v1alpha1.WorkModeContinuous }, "hangs2"),
			v1alpha1.ReasonWorking, status.CurrentStatus, argocd.Healthy},
		{"continuous, idle", l.claim("idle", func(c *v1alpha1.WorkClaim) { c.Spec.Mode = v1alpha1.WorkModeContinuous }, "done"),
			v1alpha1.ReasonIdle, status.CurrentStatus, argocd.Healthy},

		{"works", working, v1alpha1.ReasonWorking, status.InProgressStatus, argocd.Progressing},
		{"nothing selected", l.claim("nothing", func(c *v1alpha1.WorkClaim) {
			c.Spec.Machines.Selector = &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"rack": "none"}}
		}),
			v1alpha1.ReasonNoMachineSelected, status.InProgressStatus, argocd.Progressing},
		{"backed off", l.claim("backs-off", func(c *v1alpha1.WorkClaim) {
			c.Spec.Backoff = v1alpha1.WorkBackoff{InitialSeconds: 3600, MaximumSeconds: 3600}
		}, "fails1"), v1alpha1.ReasonBackedOff, status.InProgressStatus, argocd.Progressing},
		{"held", l.claim("held", nil, "held"), v1alpha1.ReasonHeld, status.InProgressStatus, argocd.Progressing},
		{"locked", l.claim("locked", nil, "hangs1"), v1alpha1.ReasonLockedBy, status.InProgressStatus, argocd.Progressing},

		{"suspended", l.claim("suspended", func(c *v1alpha1.WorkClaim) { c.Spec.Suspend = new(true) }, "done", "hangs3"),
			v1alpha1.ReasonSuspended, status.InProgressStatus, argocd.Suspended},

		{"no such machine", l.claim("typo", nil, "nobody"), v1alpha1.ReasonNoSuchMachine, status.FailedStatus, argocd.Degraded},
		{"no such process", l.claim("unknown", func(c *v1alpha1.WorkClaim) { c.Spec.Process = "OSInstall" }, "done"),
			v1alpha1.ReasonProcessNotAvailable, status.FailedStatus, argocd.Degraded},
		{"key conflict", l.claim("conflict", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "complete" }, "held"),
			v1alpha1.ReasonKeyConflict, status.FailedStatus, argocd.Degraded},
		{"quarantined", l.claim("quarantined", func(c *v1alpha1.WorkClaim) { c.Spec.Mode, c.Spec.MaxAttempts = v1alpha1.WorkModeDrain, 1 }, "fails2"),
			v1alpha1.ReasonQuarantined, status.FailedStatus, argocd.Degraded},
		{"failed for good", l.claim("unreachable", func(c *v1alpha1.WorkClaim) { c.Spec.MaxAttempts = 1 }, "fails3"),
			v1alpha1.ReasonCompletionsUnreachable, status.FailedStatus, argocd.Degraded},
		{"too late", l.claim("late", func(c *v1alpha1.WorkClaim) { c.Spec.ActiveDeadlineSeconds = 1 }, "fails1"),
			v1alpha1.ReasonDeadlineExceeded, status.FailedStatus, argocd.Degraded},
	}
}

// library is the database as a program of another cluster has it.
func (l *lab) library() *bmdb.Connection {
	l.t.Helper()
	return bmdbtest.Open(l.t, l.database.url, func(c *bmdb.Config) { c.Cluster = "elsewhere" })
}

// hold puts a hold on a machine, which nothing in Kubernetes does in this version.
func (l *lab) hold(m *v1alpha1.Machine) {
	l.t.Helper()
	id, err := uuid.Parse(m.Status.MachineID)
	if err != nil {
		l.t.Fatal(err)
	}
	hold := bmdb.Hold{Pool: l.namespace, Name: "dimm", Reason: "bad DIMM", Owner: "oncall", Actor: "test"}
	if err := l.library().PlaceHold(l.t.Context(), hold, []uuid.UUID{id}); err != nil {
		l.t.Fatal(err)
	}
}

// shown makes an object of a machine that another cluster manages.
func (l *lab) shown() *v1alpha1.Machine {
	l.t.Helper()
	spec := bmdb.MachineSpec{Pool: l.namespace, Name: "shown", Provider: "good", ProviderID: "shown"}
	if _, err := l.library().RegisterMachine(l.t.Context(), bmdb.View{Cluster: "elsewhere", UID: "u", Name: "shown"}, spec); err != nil {
		l.t.Fatal(err)
	}
	m := l.machine("shown", "good")
	eventually(l.t, "the object shows what another cluster manages", func(ctx context.Context) error {
		if err := l.client.Get(ctx, client.ObjectKeyFromObject(m), m); err != nil {
			return err
		}
		if c := meta.FindStatusCondition(m.Status.Conditions, string(v1alpha1.ConditionManaged)); c == nil || c.Reason != string(v1alpha1.ReasonManagedElsewhere) {
			return fmt.Errorf("its conditions are %+v", m.Status.Conditions)
		}
		return nil
	})
	return m
}
