// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	ac "github.com/bmdb-dev/bmdb-operator/api/v1alpha1/applyconfiguration/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// fleet is a lab with a simulated provider and n machines, recorded.
func fleet(t *testing.T, n int, o labOptions) *lab {
	t.Helper()
	o.allowSimulated = true
	l := newLab(t, o)
	l.simulated("lab")
	for _, name := range names(n) {
		l.reconcile(l.machine(name, "lab"))
	}
	return l
}

func message(c *v1alpha1.WorkClaim) string {
	return meta.FindStatusCondition(c.Status.Conditions, "Ready").Message
}

func on(c *v1alpha1.WorkClaim, kind v1alpha1.ConditionType) bool {
	return meta.IsStatusConditionTrue(c.Status.Conditions, string(kind))
}

// TestClaimFromPendingToComplete holds each state of a claim against kstatus.
func TestClaimFromPendingToComplete(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	c := l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.Parallelism = 2 }, "m00", "m01")
	if got := l.health(c); got != status.InProgressStatus {
		t.Errorf("new WorkClaim is %s", got)
	}
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonPending, status.InProgressStatus)
	if c.Status.Progress != "0/2" || c.Status.Key != "c" || l.workers.polls == 0 {
		t.Errorf("progress %s, key %s, %d polls", c.Status.Progress, c.Status.Key, l.workers.polls)
	}
	s := l.session()
	owned := l.own(s, "c")
	works := l.start(s, owned)
	l.workers.owned = []string{"c"}
	if _, err := s.ShowProgress(t.Context(), []bmdb.Progress{{Work: works[0], Step: "Upload", Percent: 40}}); err != nil {
		t.Fatal(err)
	}
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonWorking, status.InProgressStatus)
	if *c.Status.Active != 2 || len(c.Status.Work) != 2 || !slices.ContainsFunc(c.Status.Work, func(w v1alpha1.ClaimWork) bool {
		return w.Step == "Upload" && *w.Percent == 40
	}) {
		t.Errorf("active %d, work %+v", *c.Status.Active, c.Status.Work)
	}
	for _, w := range works {
		if err := w.FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: append(w.Machine[:], w.Machine[:]...)}); err != nil {
			t.Fatal(err)
		}
	}
	l.recorded()
	l.reconcile(c)
	l.verify(c, metav1.ConditionTrue, v1alpha1.ReasonComplete, status.CurrentStatus)
	if c.Status.Progress != "2/2" || !on(c, v1alpha1.ConditionFinished) || !on(c, v1alpha1.ConditionComplete) || on(c, v1alpha1.ConditionFailed) || c.Status.CompletionTime == nil {
		t.Errorf("status is %+v", c.Status)
	}
	if got := l.recorded(); len(got) != 1 || !strings.HasPrefix(got[0], "Normal Complete") {
		t.Errorf("events are %q", got)
	}
}

// TestFinalStateIsWrittenAtOnce: an interval does not keep it.
func TestFinalStateIsWrittenAtOnce(t *testing.T) {
	l := fleet(t, 1, labOptions{interval: time.Minute})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	s := l.session()
	works := l.start(s, l.own(s, "c"))
	l.workers.owned = []string{"c"}
	before := l.writes.count()
	if result := l.reconcile(c); l.writes.count() != before || result.RequeueAfter <= 0 {
		t.Errorf("%d writes within the interval, again after %s", l.writes.count()-before, result.RequeueAfter)
	}
	if err := works[0].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	l.reconcile(c)
	l.verify(c, metav1.ConditionTrue, v1alpha1.ReasonComplete, status.CurrentStatus)
}

func TestClaimFails(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.MaxAttempts = 1 }, "m00")
	l.reconcile(c)
	s := l.session()
	owned := l.own(s, "c")
	if err := l.start(s, owned)[0].Fail(t.Context(), nil, "Unreachable: no answer"); err != nil {
		t.Fatal(err)
	}
	if outlook, err := s.ReviewClaim(t.Context(), owned); err != nil || outlook.State != bmdb.ClaimFailed {
		t.Fatalf("outlook %+v: %v", outlook, err)
	}
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonCompletionsUnreachable, status.FailedStatus)
	if !on(c, v1alpha1.ConditionFinished) || !on(c, v1alpha1.ConditionFailed) || on(c, v1alpha1.ConditionComplete) || *c.Status.Failed != 1 {
		t.Errorf("status is %+v", c.Status)
	}
	if len(c.Status.Failures) != 1 || c.Status.Failures[0].Cause != "Unreachable: no answer" {
		t.Errorf("failures are %+v", c.Status.Failures)
	}
}

// TestClaimThatNobodyCarriesOut holds what keeps a claim from being carried out against kstatus. Nothing is started.
func TestClaimThatNobodyCarriesOut(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(c *v1alpha1.WorkClaim)
		reason v1alpha1.Reason
		health status.Status
	}{
		{"unknown process", func(c *v1alpha1.WorkClaim) { c.Spec.Process = "burn-in" }, v1alpha1.ReasonProcessNotAvailable, status.FailedStatus},
		{"process of a later version", func(c *v1alpha1.WorkClaim) { c.Spec.Process = v1alpha1.ProcessOSInstall }, v1alpha1.ReasonProcessNotAvailable, status.FailedStatus},
		{"not convergent", func(c *v1alpha1.WorkClaim) { c.Spec.Process, c.Spec.Mode = "reboot", v1alpha1.WorkModeContinuous }, v1alpha1.ReasonProcessNotConvergent, status.FailedStatus},
		{"no provider", func(c *v1alpha1.WorkClaim) {
			c.Spec.Machines = v1alpha1.MachineSelection{ProviderRef: v1alpha1.ProviderConfigReference{Name: "nowhere"}}
		}, v1alpha1.ReasonProviderNotReady, status.FailedStatus},
		{"suspended", func(c *v1alpha1.WorkClaim) { c.Spec.Suspend = new(true) }, v1alpha1.ReasonSuspended, status.InProgressStatus},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := fleet(t, 1, labOptions{})
			if err := l.conn.RegisterProcess(t.Context(), bmdb.ProcessDefinition{Pool: l.namespace, Name: "reboot", Requires: []string{bmdb.FactProvided}}); err != nil {
				t.Fatal(err)
			}
			c := l.claim("c", test.change, "m00")
			l.clock.SetTime(time.Now().Add(10 * time.Second))
			l.reconcile(c)
			l.verify(c, metav1.ConditionFalse, test.reason, test.health)
			owned, err := l.session().OwnClaims(t.Context(), 10)
			if err != nil {
				t.Fatal(err)
			}
			if len(owned) != 0 && test.reason != v1alpha1.ReasonSuspended {
				t.Errorf("%d claims are to be owned", len(owned))
			}
		})
	}
}

// TestAppliedTogether: a claim that comes a moment before its provider waits for it, and does not fail those who wait for the claim.
func TestAppliedTogether(t *testing.T) {
	l := newLab(t, labOptions{allowSimulated: true})
	c := l.claim("c", nil, "m00")
	l.clock.SetTime(c.CreationTimestamp.Add(time.Second))
	result := l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonProviderNotReady, status.InProgressStatus)
	if result.RequeueAfter <= 0 || result.RequeueAfter > 5*time.Second {
		t.Errorf("looked at again after %s", result.RequeueAfter)
	}
	l.clock.Step(5 * time.Second)
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonProviderNotReady, status.FailedStatus)
	l.simulated("lab")
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonPending, status.InProgressStatus)
}

// TestKeyConflict: another spec under a key changes nothing, whether its object is here or gone.
func TestKeyConflict(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	first := l.claim("first", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "k" }, "m00")
	l.reconcile(first)
	second := l.claim("second", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "k" }, "m01")
	result := l.reconcile(second)
	l.verify(second, metav1.ConditionFalse, v1alpha1.ReasonKeyConflict, status.FailedStatus)
	if !strings.Contains(message(second), "first") || result.RequeueAfter <= 0 || second.Status.Revision != 0 {
		t.Errorf("message %q, again after %s, revision %d", message(second), result.RequeueAfter, second.Status.Revision)
	}
	l.remove(first)
	l.reconcile(first)
	l.reconcile(second)
	l.verify(second, metav1.ConditionFalse, v1alpha1.ReasonKeyConflict, status.FailedStatus)
	snapshot, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, "k", bmdb.ClaimLimits{})
	if err != nil || snapshot.State != bmdb.ClaimDetached {
		t.Errorf("row is %+v: %v", snapshot, err)
	}
}

// TestTwin: a second object with the key and the same spec reports what is done for the first, and speaks for the key when that is gone.
func TestTwin(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	change := func(c *v1alpha1.WorkClaim) { c.Spec.Key = "k" }
	first := l.claim("first", change, "m00")
	l.reconcile(first)
	second := l.claim("second", change, "m00")
	l.reconcile(second)
	l.verify(second, metav1.ConditionTrue, v1alpha1.ReasonManagedElsewhere, status.CurrentStatus)
	if on(second, v1alpha1.ConditionManaged) || second.Status.Progress != "0/1" {
		t.Errorf("status is %+v", second.Status)
	}
	l.remove(first)
	l.reconcile(first)
	l.reconcile(second)
	l.verify(second, metav1.ConditionFalse, v1alpha1.ReasonPending, status.InProgressStatus)
	if !on(second, v1alpha1.ConditionManaged) {
		t.Error("nobody manages")
	}
}

// TestClaimDeletedInMidWork: the finalizer is there before the first start, and goes when nothing is held any more.
func TestClaimDeletedInMidWork(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	if len(c.Finalizers) != 0 {
		t.Errorf("finalizers before the first start are %v", c.Finalizers)
	}
	s := l.session()
	owned := l.own(s, "c")
	if err := l.admit("c", 1); err != nil {
		t.Fatal(err)
	}
	works := l.start(s, owned)
	l.read(c)
	if !slices.Contains(c.Finalizers, controllers.FinalizerWork) {
		t.Errorf("finalizers while a machine is held are %v", c.Finalizers)
	}
	l.remove(c)
	result := l.reconcile(c)
	if !l.read(c) || result.RequeueAfter <= 0 || !slices.Contains(l.workers.cancelled, "c") {
		t.Fatalf("again after %s, cancelled %v", result.RequeueAfter, l.workers.cancelled)
	}
	works[0].Cancel(t.Context())
	l.reconcile(c)
	if l.read(c) {
		t.Errorf("object is still there, with finalizers %v", c.Finalizers)
	}
	if err := l.admit("c", 1); err != worker.ErrGone { //nolint:errorlint // Returned as it is.
		t.Errorf("a claim without an object is admitted: %v", err)
	}
}

// TestIdleClaimHasNoFinalizer, nor has one that is over.
func TestIdleClaimHasNoFinalizer(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	if err := l.admit("c", 1); err != nil {
		t.Fatal(err)
	}
	if err := l.idle("c", 1); err != nil {
		t.Fatal(err)
	}
	if l.read(c); len(c.Finalizers) != 0 {
		t.Errorf("finalizers of an idle claim are %v", c.Finalizers)
	}
	if err := l.admit("c", 1); err != nil {
		t.Fatal(err)
	}
	s := l.session()
	if err := l.start(s, l.own(s, "c"))[0].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	l.reconcile(c)
	l.reconcile(c)
	if len(c.Finalizers) != 0 {
		t.Errorf("finalizers of a claim that is over are %v", c.Finalizers)
	}
}

// TestFinalizerOfACopiedManifest: somebody who applied a copy of the object, with our finalizer in it, does not keep it there.
func TestFinalizerOfACopiedManifest(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	if err := l.admit("c", 1); err != nil {
		t.Fatal(err)
	}
	copied := ac.WorkClaim(c.Name, c.Namespace).WithFinalizers(controllers.FinalizerWork, "example.com/keep")
	if err := l.client.Apply(t.Context(), copied, client.FieldOwner("a-person"), client.ForceOwnership); err != nil {
		t.Fatal(err)
	}
	if err := l.idle("c", 1); err != nil {
		t.Fatal(err)
	}
	if l.read(c); !slices.Equal(c.Finalizers, []string{"example.com/keep"}) {
		t.Errorf("finalizers of an idle claim are %v", c.Finalizers)
	}
	if err := l.client.Apply(t.Context(), ac.WorkClaim(c.Name, c.Namespace), client.FieldOwner("a-person"), client.ForceOwnership); err != nil {
		t.Fatal(err) // so that the namespace can go
	}
}

// TestDeletedWhileNobodyLooked: a claim whose object went while no operator ran is found by its row, and is not carried out.
func TestDeletedWhileNobodyLooked(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.Key = "another-key" }, "m00")
	l.reconcile(c)
	l.remove(c)
	later := newLab(t, labOptions{namespace: l.namespace, database: l.url(), pod: "pod-2", allowSimulated: true})
	later.own(later.session(), "another-key")
	if err := later.admit("another-key", 1); err != worker.ErrGone { //nolint:errorlint // Returned as it is.
		t.Errorf("a claim without an object is admitted: %v", err)
	}
	later.reconcile(c)
	snapshot, err := l.conn.ClaimSnapshot(t.Context(), l.namespace, "another-key", bmdb.ClaimLimits{})
	if err != nil || snapshot.State != bmdb.ClaimDetached {
		t.Errorf("row is %+v: %v", snapshot, err)
	}
}

// TestOwnerShows: while a claim is owned by a pod that lives, the other replicas leave its status to that one.
func TestOwnerShows(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.reconcile(c)
	second := newLab(t, labOptions{namespace: l.namespace, database: l.url(), pod: "pod-2", allowSimulated: true})
	s := l.session()
	works := l.start(s, l.own(s, "c"))
	second.reconcile(c)
	if second.writes.count() != 0 || len(second.shown.all) != 0 {
		t.Errorf("the second replica wrote %d times and acknowledged %v", second.writes.count(), second.shown.all)
	}
	l.workers.owned = []string{"c"}
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonWorking, status.InProgressStatus)
	if err := works[0].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	second.reconcile(c)
	second.verify(c, metav1.ConditionTrue, v1alpha1.ReasonComplete, status.CurrentStatus)
}

// TestEndIsShownByWhoSawIt: the replica that saw a claim end as its owner shows that at once, the others a while later, and then find it shown.
// If that one is gone, they show it.
func TestEndIsShownByWhoSawIt(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	pods := []*lab{}
	for _, name := range []string{"pod-2", "pod-3"} {
		pods = append(pods, newLab(t, labOptions{namespace: l.namespace, database: l.url(), pod: name, allowSimulated: true, stagger: time.Millisecond}))
	}
	saw, other := pods[0], pods[1]
	s := l.session()
	end := func(c *v1alpha1.WorkClaim) {
		t.Helper()
		l.reconcile(c)
		owned := l.own(s, c.Name)
		if err := l.start(s, owned)[0].Fail(t.Context(), nil, "Unreachable: no answer"); err != nil {
			t.Fatal(err)
		}
		if outlook, err := s.ReviewClaim(t.Context(), owned); err != nil || outlook.State != bmdb.ClaimFailed {
			t.Fatalf("outlook %+v: %v", outlook, err)
		}
	}
	once := func(c *v1alpha1.WorkClaim) { c.Spec.MaxAttempts = 1 }
	waits := func(p *lab, c *v1alpha1.WorkClaim) {
		t.Helper()
		before := p.writes.count()
		for range 2 { // however often it hears of it
			if result := p.reconcile(c); result.RequeueAfter <= 0 || result.RequeueAfter > 1500*time.Millisecond || p.writes.count() != before {
				t.Errorf("wrote %d times, looks again after %s", p.writes.count()-before, result.RequeueAfter)
			}
		}
	}
	shows := func(p *lab, c *v1alpha1.WorkClaim) {
		t.Helper()
		before := p.writes.count()
		p.reconcile(c)
		l.read(c)
		l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonCompletionsUnreachable, status.FailedStatus)
		if n := p.writes.count() - before; n != 1 {
			t.Errorf("wrote %d times", n)
		}
	}
	c := l.claim("c", once, "m00")
	end(c)
	waits(other, c)
	saw.objects.ClaimOver(l.namespace, "c")
	shows(saw, c)
	before := other.writes.count()
	other.clock.Step(2 * time.Second)
	if other.reconcile(c); other.writes.count() != before {
		t.Error("the other one writes what is shown")
	}

	alone := l.claim("alone", once, "m01")
	end(alone)
	waits(other, alone)
	other.clock.Step(2 * time.Second)
	shows(other, alone)

	// What ended before there was this object waits for nobody.
	ended := c.Status.CompletionTime
	var again *v1alpha1.WorkClaim
	for again == nil || !again.CreationTimestamp.After(ended.Time) {
		l.remove(c)
		l.reconcile(c)
		again = l.claim("c", once, "m00")
	}
	shows(newLab(t, labOptions{namespace: l.namespace, database: l.url(), pod: "pod-4", allowSimulated: true, stagger: time.Millisecond}), again)
}

func TestPodIsFull(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", nil, "m00")
	l.workers.owned, l.workers.limits["c"] = []string{"c"}, 64
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonAtLimit, status.InProgressStatus)
	if !strings.Contains(message(c), "64") {
		t.Errorf("message is %q", message(c))
	}
}

func TestTTL(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	c := l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.TTLSecondsAfterFinished = new(int32(3600)) }, "m00")
	l.reconcile(c)
	s := l.session()
	if err := l.start(s, l.own(s, "c"))[0].FinishData(t.Context(), bmdb.Outcome{AgentPublicKey: make([]byte, 32)}); err != nil {
		t.Fatal(err)
	}
	if result := l.reconcile(c); result.RequeueAfter < 59*time.Minute || result.RequeueAfter > 61*time.Minute {
		t.Errorf("looked at again after %s", result.RequeueAfter)
	}
	l.clock.Step(61 * time.Minute)
	l.reconcile(c)
	if l.read(c) {
		t.Error("object is still there")
	}
	// Made again, it reports the outcome, and has its hour from now.
	again := l.claim("c", func(c *v1alpha1.WorkClaim) { c.Spec.TTLSecondsAfterFinished = new(int32(3600)) }, "m00")
	l.clock.SetTime(time.Now())
	result := l.reconcile(again)
	l.verify(again, metav1.ConditionTrue, v1alpha1.ReasonComplete, status.CurrentStatus)
	if result.RequeueAfter < 59*time.Minute {
		t.Errorf("looked at again after %s", result.RequeueAfter)
	}
}

// TestSpecReachesTheDatabase: what may change of a spec counts at once, and is told once.
func TestSpecReachesTheDatabase(t *testing.T) {
	l := fleet(t, 2, labOptions{})
	c := l.claim("c", nil, "m00", "m01")
	l.reconcile(c)
	l.update(c, func() {
		c.Spec.Parallelism, c.Spec.TimeoutSeconds, c.Spec.MaxAttempts, c.Spec.MaxFailedMachines = 7, 60, 9, new(int32(0))
		c.Spec.Backoff = v1alpha1.WorkBackoff{InitialSeconds: 3, MaximumSeconds: 4}
		c.Spec.ActiveDeadlineSeconds = 1000
	})
	l.reconcile(c)
	got := l.own(l.session(), "c").Spec
	if got.Parallelism != 7 || got.TimeoutSeconds != 60 || got.MaxAttempts != 9 || *got.MaxFailedMachines != 0 || got.BackoffInitialSeconds != 3 ||
		got.BackoffMaximumSeconds != 4 || *got.ActiveDeadlineSeconds != 1000 || *got.Completions != 2 {
		t.Errorf("spec in the database is %+v", got)
	}
	if *c.Status.ObservedGeneration != c.Generation {
		t.Errorf("observed generation %d of %d", *c.Status.ObservedGeneration, c.Generation)
	}
}
