// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// fail ends works with a backoff so short that a test can wait for its end.
func fail(t *testing.T, cause string, works ...*bmdb.Work) {
	t.Helper()
	for _, w := range works {
		if err := w.Fail(t.Context(), &bmdb.Backoff{Initial: time.Second}, cause); err != nil {
			t.Fatal(err)
		}
	}
}

// next waits until the claim's owner starts something.
func next(t *testing.T, s *bmdb.Session, o *bmdb.OwnedClaim) []*bmdb.Work {
	t.Helper()
	var works []*bmdb.Work
	eventually(t, "a work of claim "+o.Spec.Key+" is started", func() bool {
		works = round(t, s, o, 64)
		return len(works) > 0
	})
	return works
}

func TestQuarantineAndMoreAttempts(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	register(t, conn, 2)
	spec := agentStart("q", bmdb.ModeDrain)
	spec.Selector, spec.MaxAttempts, spec.Parallelism = &bmdb.Selector{}, 2, 2
	o := attach(t, conn, s, spec)
	works := next(t, s, o)
	if len(works) != 2 {
		t.Fatalf("started %d works, want 2", len(works))
	}
	finish(t, works[0])
	fail(t, "no route to host", works[1])
	if out := review(t, s, o); out.Reason != bmdb.OutlookBackedOff || !strings.Contains(out.Message, "no route to host") || out.State != bmdb.ClaimRunning {
		t.Errorf("outlook after one failure: %+v", out)
	}
	works = next(t, s, o)
	if works[0].Attempt() != 2 {
		t.Errorf("second attempt says it is number %d", works[0].Attempt())
	}
	fail(t, "no route to host", works...)
	out := review(t, s, o)
	if out.Reason != bmdb.OutlookQuarantined || !strings.Contains(out.Message, "no route to host") || out.State != bmdb.ClaimRunning {
		t.Errorf("outlook when only quarantined machines are left: %+v", out)
	}
	got := snapshot(t, conn, "q")
	if got.Failed != 1 || got.Succeeded != 1 || len(got.Failures) != 1 || !got.Failures[0].Quarantined || got.Failures[0].Attempts != 2 {
		t.Errorf("snapshot of a quarantine: %+v", got)
	}
	if works := round(t, s, o, 64); len(works) != 0 {
		t.Error("started work on a quarantined machine")
	}
	spec.MaxAttempts = 3
	attachOnly(t, conn, spec)
	if got := snapshot(t, conn, "q"); got.Failed != 0 {
		t.Errorf("after maxAttempts was raised %d machines are quarantined", got.Failed)
	}
	finish(t, next(t, s, o)...)
	if out := review(t, s, o); out.State != bmdb.ClaimComplete {
		t.Errorf("outlook at the end: %+v", out)
	}
}

func TestTenLossesQuarantine(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	conn := bmdbtest.Open(t, url, inClusterA)
	s := start(t, conn, bmdb.WithoutMaintenance())
	register(t, conn, 1)
	spec := agentStart("l", bmdb.ModeOnce)
	spec.Names = names(1)
	o := attach(t, conn, s, spec)
	db := connect(t, url)
	for i := range 10 {
		works := round(t, s, o, 1)
		if len(works) != 1 {
			t.Fatalf("loss %d: started %d works, want 1", i, len(works))
		}
		if got := snapshot(t, conn, "l"); got.Failed != 0 {
			t.Fatalf("quarantined after %d losses", i)
		}
		// The sweep ends what is over its deadline as Lost.
		if _, err := db.Exec(t.Context(), "UPDATE work SET deadline = clock_timestamp() - interval '1 hour' WHERE work_id IS NOT NULL"); err != nil {
			t.Fatal(err)
		}
		if err := bmdb.NewChores(conn).Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := works[0].FinishData(t.Context(), bmdb.Outcome{}); !errors.Is(err, bmdb.ErrWorkLost) {
			t.Fatalf("finish of a lost work: %v", err)
		}
	}
	got := snapshot(t, conn, "l")
	if got.Failed != 1 || got.Failures[0].Losses != 10 || got.Failures[0].Attempts != 0 {
		t.Errorf("after ten losses: %+v", got)
	}
	if out := review(t, s, o); out.State != bmdb.ClaimFailed || out.Reason != bmdb.OutlookCompletionsUnreachable {
		t.Errorf("outlook of a closed selection that can do no more: %+v", out)
	}
}

func TestTooManyFailedMachinesAndUnreachable(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	register(t, conn, 3)
	spec := agentStart("f", bmdb.ModeOnce)
	most := int64(1)
	spec.Names, spec.MaxAttempts, spec.Parallelism, spec.MaxFailedMachines = names(3), 1, 3, &most
	o := attach(t, conn, s, spec)
	works := next(t, s, o)
	fail(t, "broken", works[0], works[1])
	if got := snapshot(t, conn, "f"); got.State != bmdb.ClaimRunning || got.Failed != 2 {
		t.Errorf("while one work goes on: %+v", got)
	}
	if more := round(t, s, o, 64); len(more) > 0 {
		t.Error("a claim with too many failed machines started work")
	}
	if out := review(t, s, o); out.State != bmdb.ClaimRunning || out.Reason != bmdb.OutlookWorking {
		t.Errorf("outlook while one work goes on: %+v", out)
	}
	finish(t, works[2])
	got := snapshot(t, conn, "f")
	if got.State != bmdb.ClaimFailed || got.Reason != bmdb.OutlookTooManyFailedMachines || got.Succeeded != 1 || got.CompletedAt == nil {
		t.Errorf("at the end: %+v", got)
	}
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	register(t, conn, 2)
	spec := agentStart("d", bmdb.ModeOnce)
	second := int64(1)
	spec.Names, spec.ActiveDeadlineSeconds = names(2), &second
	o := attach(t, conn, s, spec)
	works := next(t, s, o)
	eventually(t, "the deadline is seen", func() bool { return strings.Contains(review(t, s, o).Message, "deadline") })
	if more := round(t, s, o, 64); len(more) > 0 {
		t.Error("started work after the deadline")
	}
	finish(t, works...)
	if out := review(t, s, o); out.State != bmdb.ClaimFailed || out.Reason != bmdb.OutlookDeadlineExceeded {
		t.Errorf("outlook after the deadline: %+v", out)
	}
	if got := snapshot(t, conn, "d"); got.Succeeded != 1 || got.Active != 0 {
		t.Errorf("at the end: %+v", got)
	}
}

func TestSuspendByAnyView(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	register(t, conn, 1)
	spec := agentStart("s", bmdb.ModeOnce)
	spec.Names = names(1)
	o := attach(t, conn, s, spec)
	other := bmdb.View{Cluster: "b", UID: "b", Name: "s"}
	suspended := spec
	suspended.Suspended, suspended.Parallelism = true, 7
	a, err := conn.AttachClaim(t.Context(), other, suspended, false)
	if err != nil || a.Manages || a.Manager != "a" {
		t.Fatalf("attached by another cluster: %+v, %v", a, err)
	}
	if works := round(t, s, o, 1); len(works) > 0 {
		t.Error("a suspended claim started work")
	}
	if out := review(t, s, o); out.Reason != bmdb.OutlookSuspended {
		t.Errorf("outlook of a suspended claim: %+v", out)
	}
	if o.Spec.Parallelism != 1 {
		t.Errorf("a view that does not manage changed the parallelism to %d", o.Spec.Parallelism)
	}
	if left, err := conn.DetachClaim(t.Context(), other, pool, "s"); err != nil || left != 0 {
		t.Fatalf("detach: %d, %v", left, err)
	}
	finish(t, next(t, s, o)...)
}

func TestDetachedClaimGoesOnWhereItStood(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	register(t, conn, 3)
	spec := agentStart("go-on", bmdb.ModeOnce)
	spec.Names = names(3)
	o := attach(t, conn, s, spec)
	first := next(t, s, o)
	finish(t, first...)
	running := next(t, s, o)
	if left, err := conn.DetachClaim(t.Context(), view("go-on"), pool, "go-on"); err != nil || left != 1 {
		t.Fatalf("detach: %d works left, %v, want 1", left, err)
	}
	if _, err := s.ClaimRound(t.Context(), o, 1); !errors.Is(err, bmdb.ErrClaimLost) {
		t.Errorf("round of a detached claim: %v", err)
	}
	<-running[0].Context().Done() // a beat finds that the claim is gone
	running[0].Cancel(t.Context())
	if left, err := conn.DetachClaim(t.Context(), view("go-on"), pool, "go-on"); err != nil || left != 0 {
		t.Fatalf("detach again: %d works left, %v", left, err)
	}
	if got := snapshot(t, conn, "go-on"); got.State != bmdb.ClaimDetached || got.Succeeded != 1 || got.Active != 0 || got.Manager != nil {
		t.Errorf("detached: %+v", got)
	}
	// Another cluster's object of the same spec, with names in another order.
	again := spec
	again.Names = []string{"m2", "m0", "m1"}
	if a, err := conn.AttachClaim(t.Context(), bmdb.View{Cluster: "a", UID: "new", Name: "go-on"}, again, true); err != nil || a.State != bmdb.ClaimRunning || !a.Manages {
		t.Fatalf("attached again: %+v, %v", a, err)
	}
	if events, err := conn.AuditOf(t.Context(), pool, bmdb.KindClaim, "go-on", 10); err != nil || len(events) != 1 || events[0].Event != bmdb.AuditManages {
		t.Errorf("audit of the role that passed: %+v, %v", events, err)
	}
	owned, err := s.OwnClaims(t.Context(), 1)
	if err != nil || len(owned) != 1 || owned[0].Succeeded != 1 {
		t.Fatalf("owned again: %v, %v", owned, err)
	}
	done := map[uuid.UUID]bool{first[0].Machine: true}
	for range 2 {
		works := next(t, s, owned[0])
		done[works[0].Machine] = true
		finish(t, works...)
	}
	if got := snapshot(t, conn, "go-on"); got.State != bmdb.ClaimComplete || got.Succeeded != 3 || len(done) != 3 {
		t.Errorf("at the end: %+v, %d machines", got, len(done))
	}
}

// In mode Once a machine has one success for a key: by a row, not by its history.
func TestSecondSuccessForAKeyIsRefused(t *testing.T) {
	t.Parallel()
	url := bmdbtest.NewURL(t)
	conn := bmdbtest.Open(t, url, inClusterA)
	s := start(t, conn)
	ids := register(t, conn, 1)
	spec := agentStart("once", bmdb.ModeOnce)
	spec.Selector = &bmdb.Selector{}
	two := int64(2)
	spec.Completions = &two
	o := attach(t, conn, s, spec)
	finish(t, next(t, s, o)...)
	// The machine needs it again, and its history is gone.
	db := connect(t, url)
	if _, err := db.Exec(t.Context(), "DELETE FROM work_history"); err != nil {
		t.Fatal(err)
	}
	err := s.Transact(t.Context(), func(q *model.Queries) error { return q.MachineDeleteAgentStarted(t.Context(), ids[0]) })
	if err != nil {
		t.Fatal(err)
	}
	if works := round(t, s, o, 1); len(works) > 0 {
		t.Fatal("a machine was started a second time for its key")
	}
	if out := review(t, s, o); out.State != bmdb.ClaimRunning || out.Reason != bmdb.OutlookNoMachineSelected {
		t.Errorf("outlook when every selected machine is done: %+v", out)
	}
	// A work that was started before the row was there is refused by its end.
	if _, err := db.Exec(t.Context(), "UPDATE claim_machines SET finished_work_id = NULL"); err != nil {
		t.Fatal(err)
	}
	works := next(t, s, o)
	if _, err := db.Exec(t.Context(), "UPDATE claim_machines SET finished_work_id = machine_id"); err != nil {
		t.Fatal(err)
	}
	finish(t, works...)
	history, err := conn.ListHistoryOf(t.Context(), ids[0])
	if err != nil {
		t.Fatal(err)
	}
	if last := history[len(history)-1]; last.Event != model.WorkHistoryEventCanceled {
		t.Errorf("second success ended as %s, want Canceled", last.Event)
	}
	if got := snapshot(t, conn, "once"); got.Succeeded != 1 || got.Active != 0 {
		t.Errorf("after a second success: %+v", got)
	}
}

func TestOutlooks(t *testing.T) {
	t.Parallel()
	conn := bmdbtest.New(t, inClusterA)
	s := start(t, conn)
	ids := register(t, conn, 1)
	spec := agentStart("o", bmdb.ModeOnce)
	spec.Names = []string{"m0", "absent"}
	o := attach(t, conn, s, spec)
	check := func(reason string, says ...string) {
		t.Helper()
		out := review(t, s, o)
		if out.Reason != reason || out.RetryAfter <= 0 || out.State != bmdb.ClaimRunning {
			t.Fatalf("outlook is %+v, want %s", out, reason)
		}
		for _, say := range says {
			if !strings.Contains(out.Message, say) {
				t.Errorf("message %q does not say %q", out.Message, say)
			}
		}
		got := snapshot(t, conn, "o")
		if got.Reason != reason || got.Message != out.Message {
			t.Errorf("row says %s %q, the outlook %s %q", got.Reason, got.Message, reason, out.Message)
		}
		review(t, s, o)
		if again := snapshot(t, conn, "o"); again.Rev != got.Rev {
			t.Errorf("a review that found nothing new raised the revision from %d to %d", got.Rev, again.Rev)
		}
	}
	check(bmdb.OutlookWorking)
	hold := bmdb.Hold{Pool: pool, Name: "dimm", Reason: "bad DIMM B2", Owner: "oncall", Actor: "me"}
	if err := conn.PlaceHold(t.Context(), hold, ids); err != nil {
		t.Fatal(err)
	}
	check(bmdb.OutlookHeld, "dimm", "oncall", "bad DIMM B2", "m0", "1 NoSuchMachine")
	if err := conn.ReleaseHold(t.Context(), pool, "dimm", "me"); err != nil {
		t.Fatal(err)
	}
	w, err := s.Work(t.Context(), model.ProcessShepherdAccess, constantly(ids[0]))
	if err != nil {
		t.Fatal(err)
	}
	check(bmdb.OutlookLockedBy, "ShepherdAccess")
	if works := round(t, s, o, 1); len(works) > 0 {
		t.Error("started work in a slot that is taken")
	}
	w.Cancel(t.Context())
	none := int64(0)
	conn.SettleWithin(0)
	if err := conn.AttachProvider(t.Context(), view("lab"), bmdb.ProviderLimits{Pool: pool, Provider: "lab", Parallelism: &none}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the limit has settled", func() bool {
		p, err := conn.ProviderSnapshot(t.Context(), "a", pool, "lab")
		return err == nil && !p.Settling
	})
	check(bmdb.OutlookAtLimit, "lab", "0")
	if works := round(t, s, o, 1); len(works) > 0 {
		t.Error("started work over the limit")
	}
	if err := conn.DetachProvider(t.Context(), view("lab"), pool, "lab"); err != nil {
		t.Fatal(err)
	}
	fail(t, "power supply", next(t, s, o)...)
	check(bmdb.OutlookBackedOff, "power supply")
	finish(t, next(t, s, o)...)
	check(bmdb.OutlookNoSuchMachine, "absent")

	spec = agentStart("none", bmdb.ModeDrain)
	spec.Provider = "nobody"
	o = attach(t, conn, s, spec)
	if out := review(t, s, o); out.Reason != bmdb.OutlookNoMachineSelected {
		t.Errorf("outlook of a claim that selects nothing: %+v", out)
	}
	spec = agentStart("install", bmdb.ModeOnce)
	spec.Process, spec.Names = "OSInstall", names(1)
	o = attach(t, conn, s, spec)
	if out := review(t, s, o); out.Reason != bmdb.OutlookNotNeeded || !strings.Contains(out.Message, "without InstallDue") {
		t.Errorf("outlook of a claim that no machine needs: %+v", out)
	}
	spec = agentStart("unknown", bmdb.ModeOnce)
	spec.Process, spec.Names = "no-such", names(1)
	o = attach(t, conn, s, spec)
	if out := review(t, s, o); out.Reason != bmdb.OutlookProcessNotAvailable {
		t.Errorf("outlook of a claim for an unknown process: %+v", out)
	}
	if err := conn.RegisterProcess(t.Context(), bmdb.ProcessDefinition{Pool: pool, Name: "reboot"}); err != nil {
		t.Fatal(err)
	}
	spec = agentStart("loop", bmdb.ModeContinuous)
	spec.Process, spec.Names = "reboot", names(1)
	o = attach(t, conn, s, spec)
	if out := review(t, s, o); out.Reason != bmdb.OutlookProcessNotConvergent {
		t.Errorf("outlook of a claim that would never end: %+v", out)
	}
	if works := round(t, s, o, 1); len(works) > 0 {
		t.Error("a process that does not converge was started in mode Continuous")
	}
}
