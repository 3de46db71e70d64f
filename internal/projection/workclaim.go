// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package projection

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// ClaimFacts is all that the status of a WorkClaim is made of.
type ClaimFacts struct {
	// Generation is that of the spec that was taken into account, Key the key in effect.
	Generation int64
	Key        string
	// Cluster is the one that shows the claim.
	Cluster string
	// Snapshot is the claim's row; nil: it is not recorded, or stands for another spec.
	Snapshot *bmdb.ClaimSnapshot
	// Refusal is why the claim is not carried out; nil: it is.
	Refusal *Verdict
	// Doubts is what the object says of a database that it speaks against; nil: nothing. Then only conditions change.
	Doubts *Verdict
	// Twin is the name of the object of this cluster that speaks for the key, if it is another one.
	Twin string
	// PodLimit is the size of the owner's pool of workers while the claim waits for a place in it, else 0.
	PodLimit int
	// PodCause is why work was cancelled before it began, the last time that the owner began one; empty: it was not.
	PodCause string
	// Now is the time of transitions.
	Now time.Time
}

// WorkClaim returns the status that shows the facts; old is the one so far.
func WorkClaim(old *v1alpha1.WorkClaimStatus, f ClaimFacts) v1alpha1.WorkClaimStatus {
	if f.Doubts != nil {
		s := *old.DeepCopy()
		s.ObservedGeneration = &f.Generation
		s.Conditions = conditions(old.Conditions, f.Generation, f.Now, *f.Doubts, append([]condition{managed(false, "")}, endsSoFar(old.Conditions)...)...)
		return s
	}
	s := v1alpha1.WorkClaimStatus{ObservedGeneration: &f.Generation, Key: f.Key}
	manages, manager := false, ""
	if c := f.Snapshot; c != nil {
		s.DatabaseID, s.Revision = c.Standing.Database.String(), c.Standing.Revision
		s.Progress = claimProgress(c)
		s.Succeeded, s.Active, s.Failed = count(c.Succeeded+c.Skipped), count(c.Active), count(c.Failed)
		s.Work, s.Failures = claimWork(c.Works), claimFailures(c.Failures)
		s.SkippedMachines = c.SkippedMachines[:min(len(c.SkippedMachines), v1alpha1.MaxListedMachines)]
		s.StartTime, s.CompletionTime = optionalSeconds(c.StartedAt), optionalSeconds(c.CompletedAt)
		if c.Manager != nil {
			manages, manager = c.Manager.Cluster == f.Cluster, c.Manager.Cluster
		}
	}
	v, m := claimVerdict(f), managed(manages, manager)
	if f.Twin != "" {
		m = condition{v1alpha1.ConditionManaged, false, v1alpha1.ReasonManagedElsewhere, "WorkClaim " + f.Twin + " of this cluster manages."}
	}
	s.Conditions = conditions(old.Conditions, f.Generation, f.Now, v, append([]condition{m}, claimEnds(f.Snapshot, v)...)...)
	return s
}

// ClaimFinal tells whether a status is the last one: the claim has come to its end, and nothing goes on.
func ClaimFinal(c *bmdb.ClaimSnapshot) bool {
	return c != nil && (c.State == bmdb.ClaimComplete || c.State == bmdb.ClaimFailed)
}

// claimVerdict is the first that holds of: the end, what keeps the claim from being carried out, a person's wish, work that goes on,
// what the owner found when nothing could be started.
func claimVerdict(f ClaimFacts) Verdict {
	c := f.Snapshot
	switch {
	case c != nil && c.State == bmdb.ClaimComplete:
		return Verdict{Good, v1alpha1.ReasonComplete, completeMessage(c)}
	case c != nil && c.State == bmdb.ClaimFailed:
		return Verdict{Stalled, v1alpha1.Reason(c.Reason), otherwise(c.Message, "The claim has failed. What is left can be done by a claim with another key.")}
	case elsewhere(f):
		return Verdict{Good, v1alpha1.ReasonManagedElsewhere, "Another object of the key manages; this one shows what is done."}
	case f.Refusal != nil:
		return *f.Refusal
	case c == nil:
		return Verdict{Waiting, v1alpha1.ReasonNotRecorded, "The database does not know the claim yet."}
	case c.Suspended:
		return Verdict{Suspended, v1alpha1.ReasonSuspended, "spec.suspend is true in an object of the key: nothing new is started."}
	}
	goes := Waiting
	if c.Mode == bmdb.ModeContinuous {
		goes = Good
	}
	switch {
	case c.Active > 0:
		return Verdict{goes, v1alpha1.ReasonWorking, fmt.Sprintf("Work goes on on %s.", machines(c.Active))}
	case f.PodLimit > 0:
		return Verdict{Waiting, v1alpha1.ReasonAtLimit, fmt.Sprintf("Pod %s works on as many machines as it may, %d (--work-concurrency).", c.Owner, f.PodLimit)}
	case f.PodCause != "":
		return Verdict{Waiting, v1alpha1.ReasonPending, fmt.Sprintf("Pod %s could not begin, and tries again: %s", c.Owner, f.PodCause)}
	}
	return outlookVerdict(c, goes)
}

// elsewhere tells whether another object speaks for the key, with which this one agrees.
func elsewhere(f ClaimFacts) bool {
	if f.Refusal != nil && f.Refusal.Reason == v1alpha1.ReasonKeyConflict {
		return false
	}
	return f.Twin != "" || f.Snapshot != nil && f.Snapshot.Manager != nil && f.Snapshot.Manager.Cluster != f.Cluster
}

// outlookVerdict is what the owner found at its last review.
func outlookVerdict(c *bmdb.ClaimSnapshot, goes State) Verdict {
	v := Verdict{Waiting, v1alpha1.Reason(c.Reason), c.Message}
	switch c.Reason {
	case "", bmdb.OutlookPending, bmdb.OutlookSuspended: // the latter is over, and nobody has looked since
		return Verdict{Waiting, v1alpha1.ReasonPending, "Nothing was started yet."}
	case bmdb.OutlookWorking:
		return Verdict{goes, v1alpha1.ReasonWorking, "Machines are about to be worked on."}
	case bmdb.OutlookIdle, bmdb.OutlookNotNeeded:
		if c.Mode == bmdb.ModeContinuous {
			v.State, v.Reason = Good, v1alpha1.ReasonIdle
		}
	case bmdb.OutlookDatabaseChanged, bmdb.OutlookDatabaseRewound, bmdb.OutlookNoSuchMachine, bmdb.OutlookProviderNotReady, bmdb.OutlookQuarantined, bmdb.OutlookProcessNotAvailable, bmdb.OutlookProcessNotConvergent:
		v.State = Stalled
	}
	v.Message = otherwise(v.Message, "Nothing can be started at the moment.")
	return v
}

func completeMessage(c *bmdb.ClaimSnapshot) string {
	text := machines(c.Succeeded+c.Skipped) + " done."
	if c.Skipped > 0 {
		text = fmt.Sprintf("%s done, %d of them because they did not need it.", machines(c.Succeeded+c.Skipped), c.Skipped)
	}
	return text + " To do it again use another name or key."
}

// claimEnds are the conditions Finished, Complete and Failed.
func claimEnds(c *bmdb.ClaimSnapshot, v Verdict) []condition {
	finished := condition{v1alpha1.ConditionFinished, false, v1alpha1.ReasonNotFinished, "The claim has not come to its end."}
	complete := condition{v1alpha1.ConditionComplete, false, v1alpha1.ReasonNotFinished, "The claim has not come to its end."}
	failed := condition{v1alpha1.ConditionFailed, false, v1alpha1.ReasonNotFailed, "The claim has not failed."}
	switch {
	case c == nil:
	case c.State == bmdb.ClaimComplete:
		finished = condition{v1alpha1.ConditionFinished, true, v.Reason, v.Message}
		complete = condition{v1alpha1.ConditionComplete, true, v.Reason, v.Message}
	case c.State == bmdb.ClaimFailed:
		finished = condition{v1alpha1.ConditionFinished, true, v.Reason, v.Message}
		complete = condition{v1alpha1.ConditionComplete, false, v.Reason, v.Message}
		failed = condition{v1alpha1.ConditionFailed, true, v.Reason, v.Message}
	}
	return []condition{finished, complete, failed}
}

// endsSoFar are the conditions Finished, Complete and Failed as they are: in doubt nothing that was done is taken back.
func endsSoFar(old []metav1.Condition) []condition {
	ends := claimEnds(nil, Verdict{})
	for i := range ends {
		if c := meta.FindStatusCondition(old, string(ends[i].kind)); c != nil {
			ends[i] = condition{ends[i].kind, c.Status == metav1.ConditionTrue, v1alpha1.Reason(c.Reason), c.Message}
		}
	}
	return ends
}

func claimProgress(c *bmdb.ClaimSnapshot) string {
	done := c.Succeeded + c.Skipped
	switch {
	case c.Mode == bmdb.ModeOnce && c.Completions != nil:
		return fmt.Sprintf("%d/%d", done, *c.Completions)
	case c.Mode == bmdb.ModeDrain && c.State == bmdb.ClaimComplete:
		// None needs the process, whoever did it.
		return fmt.Sprintf("%d/%d", max(c.Selected, done), max(c.Selected, done))
	case c.Mode == bmdb.ModeDrain && c.Selected > 0:
		return fmt.Sprintf("%d/%d", min(done+c.Unneeded, max(c.Selected, done)), max(c.Selected, done))
	default:
		return fmt.Sprint(done)
	}
}

func claimWork(works []bmdb.ClaimWork) []v1alpha1.ClaimWork {
	var out []v1alpha1.ClaimWork
	for _, w := range works[:min(len(works), v1alpha1.MaxListedMachines)] {
		percent := int32(w.Percent / 10 * 10) //nolint:gosec // A percentage.
		out = append(out, v1alpha1.ClaimWork{
			Machine: Shorten(w.Name, maxName), WorkID: w.WorkID.String(), Attempt: *count(w.Attempt), Holder: Shorten(w.Holder, maxName),
			StartTime: optionalSeconds(&w.Start), Step: Shorten(w.Step, maxName), Percent: &percent,
		})
	}
	return out
}

func claimFailures(failures []bmdb.ClaimFailure) []v1alpha1.ClaimFailure {
	var out []v1alpha1.ClaimFailure
	for _, f := range failures[:min(len(failures), v1alpha1.MaxListedMachines)] {
		out = append(out, v1alpha1.ClaimFailure{
			Machine: Shorten(f.Name, maxName), Attempts: *count(f.Attempts), Cause: Shorten(f.Cause, v1alpha1.MaxCauseLength),
		})
	}
	return out
}

func count(n int64) *int32 {
	c := int32(min(max(n, 0), 1<<31-1)) //nolint:gosec // Bounded in the line itself.
	return &c
}

func machines(n int64) string {
	if n == 1 {
		return "1 machine"
	}
	return fmt.Sprintf("%d machines", n)
}

func otherwise(text, fallback string) string {
	if text == "" {
		return fallback
	}
	return text
}
