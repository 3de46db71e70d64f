// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package projection_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

const here = "cluster-a"

var (
	now      = time.Date(2026, 11, 22, 12, 0, 0, 123456789, time.UTC)
	database = uuid.MustParse("91aa0000-0000-4000-8000-000000000001")
)

// claim returns a snapshot of a running claim of three machines, changed.
func claim(change func(c *bmdb.ClaimSnapshot)) *bmdb.ClaimSnapshot {
	c := &bmdb.ClaimSnapshot{
		Pool: "metal", Key: "k", Process: "AgentStart", Mode: bmdb.ModeOnce, Rev: 7, Standing: bmdb.Standing{Database: database, Revision: 7}, State: bmdb.ClaimRunning, Completions: new(int64(3)),
		Manager: &bmdb.View{Cluster: here, UID: "u", Name: "k"}, Owner: "pod-1", OwnerCluster: here,
	}
	if change != nil {
		change(c)
	}
	return c
}

// summary is the conditions in one line: what is True, and Ready's reason.
func summary(conditions []metav1.Condition) string {
	var on []string
	for _, c := range conditions {
		if c.Status == metav1.ConditionTrue {
			on = append(on, c.Type)
		}
	}
	return strings.Join(on, "+") + " " + meta.FindStatusCondition(conditions, "Ready").Reason
}

func TestWorkClaimConditions(t *testing.T) {
	refusal := func(reason v1alpha1.Reason) *projection.Verdict {
		return &projection.Verdict{State: projection.Stalled, Reason: reason, Message: "no"}
	}
	outlook := func(mode, reason string) *bmdb.ClaimSnapshot {
		return claim(func(c *bmdb.ClaimSnapshot) { c.Mode, c.Reason, c.Message = mode, reason, "why" })
	}
	for _, test := range []struct {
		name  string
		facts projection.ClaimFacts
		want  string
	}{
		{"not recorded", projection.ClaimFacts{}, "Reconciling NotRecorded"},
		{"new", projection.ClaimFacts{Snapshot: claim(nil)}, "Managed+Reconciling Pending"},
		{"works", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.Active = 1 })}, "Managed+Reconciling Working"},
		{"works, and waits besides", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.Active, c.Reason = 1, bmdb.OutlookQuarantined })}, "Managed+Reconciling Working"},
		{"is about to", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookWorking)}, "Managed+Reconciling Working"},
		{"complete", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.State = bmdb.ClaimComplete })}, "Ready+Managed+Finished+Complete Complete"},
		{"complete, whatever became of the provider", projection.ClaimFacts{
			Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.State = bmdb.ClaimComplete }), Refusal: refusal(v1alpha1.ReasonProviderNotReady),
		}, "Ready+Managed+Finished+Complete Complete"},
		{"failed", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.State, c.Reason = bmdb.ClaimFailed, bmdb.OutlookDeadlineExceeded })}, "Managed+Finished+Failed+Stalled DeadlineExceeded"},
		{"key conflict", projection.ClaimFacts{Refusal: refusal(v1alpha1.ReasonKeyConflict)}, "Stalled KeyConflict"},
		{"key conflict of a twin", projection.ClaimFacts{Refusal: refusal(v1alpha1.ReasonKeyConflict), Twin: "other"}, "Stalled KeyConflict"},
		{"twin", projection.ClaimFacts{Snapshot: claim(nil), Twin: "other"}, "Ready ManagedElsewhere"},
		{"provider not ready", projection.ClaimFacts{Snapshot: claim(nil), Refusal: refusal(v1alpha1.ReasonProviderNotReady)}, "Managed+Stalled ProviderNotReady"},
		{"managed elsewhere", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.Manager.Cluster = "b" })}, "Ready ManagedElsewhere"},
		{"suspended", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.Suspended = true })}, "Managed Suspended"},
		{"pod is full", projection.ClaimFacts{Snapshot: claim(nil), PodLimit: 64}, "Managed+Reconciling AtLimit"},
		{"pod cannot read", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeContinuous, bmdb.OutlookWorking), PodCause: "no answer"}, "Managed+Reconciling Pending"},
		{"continuous works", projection.ClaimFacts{Snapshot: claim(func(c *bmdb.ClaimSnapshot) { c.Mode, c.Active = bmdb.ModeContinuous, 2 })}, "Ready+Managed Working"},
		{"continuous idle", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeContinuous, bmdb.OutlookIdle)}, "Ready+Managed Idle"},
		{"continuous not needed", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeContinuous, bmdb.OutlookNotNeeded)}, "Ready+Managed Idle"},
		{"no machine selected", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeDrain, bmdb.OutlookNoMachineSelected)}, "Managed+Reconciling NoMachineSelected"},
		{"not needed", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookNotNeeded)}, "Managed+Reconciling NotNeeded"},
		{"backed off", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookBackedOff)}, "Managed+Reconciling BackedOff"},
		{"at limit", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookAtLimit)}, "Managed+Reconciling AtLimit"},
		{"held", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookHeld)}, "Managed+Reconciling Held"},
		{"locked", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookLockedBy)}, "Managed+Reconciling LockedBy"},
		{"no such machine", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookNoSuchMachine)}, "Managed+Stalled NoSuchMachine"},
		{"provider of the rest not ready", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookProviderNotReady)}, "Managed+Stalled ProviderNotReady"},
		{"quarantined", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookQuarantined)}, "Managed+Stalled Quarantined"},
		{"unknown process", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookProcessNotAvailable)}, "Managed+Stalled ProcessNotAvailable"},
		{"not convergent", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeContinuous, bmdb.OutlookProcessNotConvergent)}, "Managed+Stalled ProcessNotConvergent"},
		{"was suspended", projection.ClaimFacts{Snapshot: outlook(bmdb.ModeOnce, bmdb.OutlookSuspended)}, "Managed+Reconciling Pending"},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.facts.Generation, test.facts.Key, test.facts.Cluster, test.facts.Now = 4, "k", here, now
			got := projection.WorkClaim(&v1alpha1.WorkClaimStatus{}, test.facts)
			if s := summary(got.Conditions); s != test.want {
				t.Errorf("conditions are %q, want %q", s, test.want)
			}
			if *got.ObservedGeneration != 4 || got.Key != "k" {
				t.Errorf("observed generation %d, key %s", *got.ObservedGeneration, got.Key)
			}
			for _, c := range got.Conditions {
				if c.ObservedGeneration != 4 || c.Reason == "" || c.Message == "" || c.LastTransitionTime.IsZero() {
					t.Errorf("incomplete condition %+v", c)
				}
			}
		})
	}
}

func TestWorkClaimShowsTheRow(t *testing.T) {
	started, id := now.Add(-time.Minute), uuid.New()
	c := claim(func(c *bmdb.ClaimSnapshot) {
		c.Active, c.Succeeded, c.Failed, c.Skipped = 1, 1, 2, 1
		c.StartedAt = &started
		c.SkippedMachines = []string{"m9"}
		c.Works = []bmdb.ClaimWork{{Name: "m1", WorkID: id, Attempt: 2, Holder: "pod-1", Start: started, Step: "Upload", Percent: 47}}
		for range 30 {
			c.Failures = append(c.Failures, bmdb.ClaimFailure{Name: "m" + string(rune('a'+len(c.Failures))), Attempts: 5, Cause: strings.Repeat("ä", 2000)})
		}
	})
	got := projection.WorkClaim(&v1alpha1.WorkClaimStatus{}, projection.ClaimFacts{Snapshot: c, Cluster: here, Now: now})
	if got.Progress != "2/3" || *got.Succeeded != 2 || *got.Active != 1 || *got.Failed != 2 || got.Revision != 7 || got.DatabaseID != database.String() {
		t.Errorf("counts are wrong: %+v", got)
	}
	start := metav1.NewTime(started.Truncate(time.Second))
	want := []v1alpha1.ClaimWork{{Machine: "m1", WorkID: id.String(), Attempt: 2, Holder: "pod-1", StartTime: &start, Step: "Upload", Percent: new(int32(40))}}
	if diff := cmp.Diff(want, got.Work); diff != "" {
		t.Errorf("work (-want +got):\n%s", diff)
	}
	if len(got.Failures) != v1alpha1.MaxListedMachines || len([]rune(got.Failures[0].Cause)) != v1alpha1.MaxCauseLength {
		t.Errorf("%d failures, first cause with %d characters", len(got.Failures), len([]rune(got.Failures[0].Cause)))
	}
	if diff := cmp.Diff([]string{"m9"}, got.SkippedMachines); diff != "" {
		t.Errorf("skipped (-want +got):\n%s", diff)
	}
	if !got.StartTime.Equal(&start) || got.CompletionTime != nil {
		t.Errorf("times are %v and %v", got.StartTime, got.CompletionTime)
	}
}

func TestProgress(t *testing.T) {
	for _, test := range []struct {
		change func(c *bmdb.ClaimSnapshot)
		want   string
	}{
		{nil, "0/3"},
		{func(c *bmdb.ClaimSnapshot) { c.Succeeded, c.Skipped = 1, 2 }, "3/3"},
		{func(c *bmdb.ClaimSnapshot) { c.Mode, c.Completions, c.Succeeded = bmdb.ModeDrain, nil, 4 }, "4"},
		{func(c *bmdb.ClaimSnapshot) {
			c.Mode, c.Completions, c.Succeeded, c.Selected = bmdb.ModeDrain, nil, 4, 9
		}, "4/9"},
		{func(c *bmdb.ClaimSnapshot) { // none needs it, whoever did it
			c.Mode, c.Completions, c.Succeeded, c.Selected, c.State = bmdb.ModeDrain, nil, 0, 6, bmdb.ClaimComplete
		}, "6/6"},
		{func(c *bmdb.ClaimSnapshot) { c.Mode, c.Completions, c.Succeeded = bmdb.ModeContinuous, nil, 12 }, "12"},
	} {
		got := projection.WorkClaim(&v1alpha1.WorkClaimStatus{}, projection.ClaimFacts{Snapshot: claim(test.change), Cluster: here, Now: now})
		if got.Progress != test.want {
			t.Errorf("progress is %q, want %q", got.Progress, test.want)
		}
	}
}

// TestNothingTicks: the same facts at another time make the same status, and a transition has the time when it happened.
func TestNothingTicks(t *testing.T) {
	facts := projection.ClaimFacts{Snapshot: claim(nil), Key: "k", Cluster: here, Now: now}
	first := projection.WorkClaim(&v1alpha1.WorkClaimStatus{}, facts)
	facts.Now = now.Add(time.Hour)
	second := projection.WorkClaim(&first, facts)
	if diff := cmp.Diff(first, second); diff != "" {
		t.Errorf("status changed with the time alone (-first +second):\n%s", diff)
	}
	facts.Snapshot = claim(func(c *bmdb.ClaimSnapshot) { c.State = bmdb.ClaimComplete })
	third := projection.WorkClaim(&second, facts)
	ready, isManaged := meta.FindStatusCondition(third.Conditions, "Ready"), meta.FindStatusCondition(third.Conditions, "Managed")
	if !ready.LastTransitionTime.Time.Equal(facts.Now.Truncate(time.Second)) || !isManaged.LastTransitionTime.Time.Equal(now.Truncate(time.Second)) {
		t.Errorf("transitions at %v (Ready) and %v (Managed)", ready.LastTransitionTime, isManaged.LastTransitionTime)
	}
}
