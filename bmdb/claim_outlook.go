// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// outlook turns the census into a verdict: whether the claim is over, and if not, why nothing more can be started. The rules are tried in their
// order; the first that speaks wins.
func (c *census) outlook(ctx context.Context) (Outlook, error) {
	for _, rule := range []func() *Outlook{c.doubtful, c.complete, c.failed, c.stopped, c.goesOn} {
		if out := rule(); out != nil {
			if out.State == "" {
				out.State = ClaimRunning
			}
			return *out, nil
		}
	}
	return c.waits(ctx)
}

// doubtful is when something speaks against the database. Nothing ends then: what it knows of the claim may be out of date.
func (c *census) doubtful() *Outlook {
	spec := &c.row.spec
	what := map[string]string{DatabaseChanged: "is another than objects of pool %s remember", DatabaseRewound: "is older than what objects of pool %s remember"}[c.row.obstacle]
	if what == "" {
		return nil
	}
	return &Outlook{
		Reason: c.row.obstacle, RetryAfter: jitter(retryLater),
		Message: fmt.Sprintf("the database "+what+": %s starts nothing until a person acknowledges the database", spec.Pool, spec.Process),
	}
}

// complete is when the claim has done what it was to do.
func (c *census) complete() *Outlook {
	r := c.row
	if r.active > 0 {
		return nil
	}
	switch r.spec.Mode {
	case ModeOnce:
		if r.succeeded+r.skipped >= *r.spec.Completions {
			return &Outlook{State: ClaimComplete, Reason: OutlookComplete, Message: c.doneMessage()}
		}
	case ModeDrain:
		needing := c.count(classActive, classQuarantined, classHeld, classLockedBy, classBackedOff, classAtLimit, classReady, classProviderNotReady)
		if r.obstacle == "" && c.selected > 0 && needing == 0 && len(c.missing) == 0 {
			return &Outlook{State: ClaimComplete, Reason: OutlookComplete, Message: c.doneMessage()}
		}
	}
	return nil
}

func (c *census) doneMessage() string {
	if c.row.skipped > 0 {
		return fmt.Sprintf("%s done, %d of them did not need %s", machines(c.row.succeeded+c.row.skipped), c.row.skipped, c.row.spec.Process)
	}
	return machines(c.row.succeeded) + " done"
}

// failed is when the claim can no longer do what it was to do. Works that go on are waited for.
func (c *census) failed() *Outlook {
	r := c.row
	var out *Outlook
	switch {
	case r.overdue:
		out = &Outlook{Reason: OutlookDeadlineExceeded, Message: overdueMessage(*r.spec.ActiveDeadlineSeconds, r.succeeded+r.skipped)}
	case r.tooManyFailed():
		out = &Outlook{Reason: OutlookTooManyFailedMachines, Message: fmt.Sprintf("%s failed, maxFailedMachines is %d", machines(r.failed), *r.spec.MaxFailedMachines)}
	case c.unreachable():
		out = &Outlook{Reason: OutlookCompletionsUnreachable, Message: fmt.Sprintf("%s of the %d named failed, %d completions cannot be reached", machines(c.count(classQuarantined)), len(r.spec.Names), *r.spec.Completions)}
	default:
		return nil
	}
	if r.active > 0 {
		return &Outlook{Reason: OutlookWorking, Message: fmt.Sprintf("%s; it ends with the work on %s", out.Message, machines(r.active)), RetryAfter: jitter(retrySoon)}
	}
	out.State = ClaimFailed
	return out
}

func overdueMessage(deadlineSeconds, done int64) string {
	return fmt.Sprintf("the deadline of %d seconds is over, %s done", deadlineSeconds, machines(done))
}

// unreachable is when a closed selection has too few machines left, and nothing more that could be tried.
func (c *census) unreachable() bool {
	if c.row.spec.Mode != ModeOnce || len(c.row.spec.Names) == 0 || !c.taken {
		return false
	}
	open := c.count(classActive, classNotNeeded, classHeld, classLockedBy, classBackedOff, classAtLimit, classReady, classProviderNotReady)
	return open == 0 && int64(len(c.row.spec.Names))-c.count(classQuarantined) < *c.row.spec.Completions
}

// stopped is when the claim itself starts nothing.
func (c *census) stopped() *Outlook {
	spec := &c.row.spec
	switch {
	case c.row.obstacle == OutlookProcessNotAvailable:
		return &Outlook{Reason: OutlookProcessNotAvailable, Message: fmt.Sprintf("process %s is not registered for claims in pool %s", spec.Process, spec.Pool), RetryAfter: jitter(retryRarely)}
	case c.row.obstacle == OutlookProcessNotConvergent:
		return &Outlook{
			Reason: OutlookProcessNotConvergent, RetryAfter: jitter(retryRarely),
			Message: fmt.Sprintf("success of %s leaves a machine in need of it, so that mode %s would repeat it for ever: use mode %s", spec.Process, spec.Mode, ModeOnce),
		}
	case spec.Suspended:
		return &Outlook{Reason: OutlookSuspended, Message: "nothing new is started while the claim is suspended", RetryAfter: jitter(retryLater)}
	}
	return nil
}

// goesOn is when work of the claim goes on, or may be started.
func (c *census) goesOn() *Outlook {
	if c.row.active > 0 || c.count(classActive, classReady) > 0 {
		return &Outlook{Reason: OutlookWorking, RetryAfter: jitter(retrySoon)}
	}
	return nil
}

// waits says what the claim waits for: what the machines that came furthest wait for.
func (c *census) waits(ctx context.Context) (Outlook, error) {
	for _, class := range []string{classAtLimit, classBackedOff, classLockedBy, classHeld} {
		if c.count(class) > 0 {
			t := c.largest(class)
			o, err := c.conn.obstacle(ctx, t.example, &c.row.spec)
			if err != nil {
				return Outlook{}, err
			}
			return Outlook{State: ClaimRunning, Reason: class, Message: c.withOthers(class, o.say(class, t)), RetryAfter: retryOf(class, t)}, nil
		}
	}
	out := Outlook{State: ClaimRunning, RetryAfter: jitter(retryRarely)}
	switch {
	case c.count(classProviderNotReady) > 0:
		t := c.largest(classProviderNotReady)
		out.Reason, out.Message = OutlookProviderNotReady, fmt.Sprintf("%s ready, but provider %s is not", machines(t.machines), t.failing)
	case len(c.missing) > 0:
		out.Reason, out.Message = OutlookNoSuchMachine, fmt.Sprintf("%s named and not in pool %s: %s", machines(int64(len(c.missing))), c.row.spec.Pool, listed(c.missing))
	case c.count(classQuarantined) > 0:
		t := c.largest(classQuarantined)
		o, err := c.conn.obstacle(ctx, t.example, &c.row.spec)
		if err != nil {
			return Outlook{}, err
		}
		out.Reason, out.Message = OutlookQuarantined, c.withOthers(classQuarantined, o.say(classQuarantined, t))
	case c.count(classNotNeeded, classFulfilled) > 0:
		out.Reason, out.Message = OutlookNotNeeded, c.notNeeded()
		if c.row.spec.Mode == ModeContinuous {
			out.Reason = OutlookIdle
		}
	case c.count(classDone) > 0:
		out.Reason, out.Message = OutlookNoMachineSelected, fmt.Sprintf("every selected machine is done, %d more are to be", *c.row.spec.Completions-c.row.succeeded-c.row.skipped)
	default:
		out.Reason, out.Message = OutlookNoMachineSelected, fmt.Sprintf("no machine of pool %s is selected", c.row.spec.Pool)
	}
	return out, nil
}

// notNeeded names the facts that keep the machines from needing the process, the most frequent first.
func (c *census) notNeeded() string {
	var first tally
	for _, class := range []string{classNotNeeded, classFulfilled} {
		if t := c.largest(class); t.machines > first.machines {
			first = t
		}
	}
	return fmt.Sprintf("none of %s needs %s: %d %s", machines(c.selected), c.row.spec.Process, first.machines, failingText(first.failing))
}

// failingText says what a predicate that fails means for a machine.
func failingText(failing string) string {
	if fact, ok := strings.CutPrefix(failing, "forbids "); ok {
		return "with " + fact
	}
	return "without " + strings.TrimPrefix(failing, "requires ")
}

// withOthers adds how many machines are in other classes.
func (c *census) withOthers(class, message string) string {
	var others []string
	for _, other := range []string{classAtLimit, classBackedOff, classLockedBy, classHeld, classQuarantined, classNotNeeded} {
		if n := c.count(other); other != class && n > 0 {
			others = append(others, fmt.Sprintf("%d %s", n, other))
		}
	}
	if n := len(c.missing); n > 0 {
		others = append(others, fmt.Sprintf("%d %s", n, OutlookNoSuchMachine))
	}
	if len(others) == 0 {
		return message
	}
	return message + " (others: " + strings.Join(others, ", ") + ")"
}

func retryOf(class string, t tally) time.Duration {
	switch {
	case class == classAtLimit:
		return jitter(retrySoon)
	case t.passes == nil:
		return jitter(retryLater)
	}
	// The database's clock may be another than ours: it only says when to ask it again.
	return jitter(min(max(time.Until(*t.passes), retrySoon), 4*retryRarely))
}

func machines(n int64) string {
	if n == 1 {
		return "1 machine"
	}
	return fmt.Sprintf("%d machines", n)
}

// listed names a few, and how many more there are.
func listed(names []string) string {
	const few = 5
	if len(names) <= few {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), len(names)-few)
}

// obstacle is what keeps work from a machine.
type obstacle struct {
	name, provider         string
	hold, owner, reason    string
	heldUntil              *time.Time
	process, claim, holder string
	cause                  string
	until                  *time.Time
	claimCause             string
	limit                  int64
	settling               bool
	pool, wanted           string
}

func (c *Connection) obstacle(ctx context.Context, machine string, spec *ClaimSpec) (obstacle, error) {
	id, err := uuid.Parse(machine)
	if err != nil {
		return obstacle{}, err
	}
	var o obstacle
	err = c.read(ctx, "Obstacle", sqlObstacle, []any{id, spec.Process, spec.Key}, func() { o = obstacle{name: machine, pool: spec.Pool, wanted: spec.Process} }, func(row pgx.Rows) error {
		return row.Scan(&o.name, &o.provider, &o.hold, &o.owner, &o.reason, &o.heldUntil, &o.process, &o.claim, &o.holder, &o.cause, &o.until, &o.claimCause, &o.limit, &o.settling)
	})
	return o, err
}

// say is the line that people read. It says nothing that changes by itself with time.
func (o *obstacle) say(class string, t tally) string {
	among := machines(t.machines)
	switch class {
	case classAtLimit:
		if o.settling {
			return fmt.Sprintf("%s wait until the new limit of provider %s is in force", among, o.provider)
		}
		return fmt.Sprintf("%s wait for provider %s, whose parallelism of %d is used up", among, o.provider, o.limit)
	case classBackedOff:
		return fmt.Sprintf("%s backed off, the first until %s; %s: %s", among, at(t.passes), o.name, o.cause)
	case classLockedBy:
		by := o.process
		if o.claim != "" {
			by += " of claim " + o.claim
		}
		if o.holder != "" {
			by += " on " + o.holder
		}
		return fmt.Sprintf("%s worked on by others; %s: %s", among, o.name, by)
	case classHeld:
		until := "without an end"
		if o.heldUntil != nil {
			until = "until " + at(o.heldUntil)
		}
		return fmt.Sprintf("%s held; %s: hold %s of %s, %s, %s", among, o.name, o.hold, o.owner, until, o.reason)
	case classQuarantined:
		return fmt.Sprintf("%s quarantined after too many failures; %s: %s; raise maxAttempts to try again", among, o.name, o.claimCause)
	}
	return ""
}

func at(t *time.Time) string {
	if t == nil {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}
