// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestGitOpsRobot plays what robots that apply a repository do to live machines: they create before they prune, revert, copy, and make again what
// was deleted. Each subtest has machines and claims of its own.
func TestGitOpsRobot(t *testing.T) {
	t.Parallel()
	l := newLab(t, testbed.Options{})
	l.Start("operator-a", "--lease", "3s")
	l.Create(l.Simulated("lab", v1alpha1.SimulatedProvider{}))
	for name, scene := range map[string]func(*lab){
		"Renamed": (*lab).testRenamed, "BackUnderAnotherName": (*lab).testBackUnderAnotherName, "Copied": (*lab).testCopied,
		"AddressesSwapped": (*lab).testAddressesSwapped, "ClaimReverted": (*lab).testClaimReverted, "TTL": (*lab).testTTL,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			scene(l.in(t))
		})
	}
}

// boxed is a machine with an identity and an address that are not its name.
func (l *lab) boxed(name, providerID, address string) *v1alpha1.Machine {
	m := l.Machine(name, "lab")
	m.Spec.ProviderID, m.Spec.Address = providerID, address
	return m
}

// awaitConflict waits until a machine's object says that it contradicts another, and names that.
func (l *lab) awaitConflict(name string, reason v1alpha1.Reason, other string) {
	l.T.Helper()
	m := l.AwaitMachine(name, reason)
	ready := testbed.Condition(m.Status.Conditions, v1alpha1.ConditionReady)
	if !strings.Contains(ready.Message, other) || !testbed.IsTrue(m.Status.Conditions, v1alpha1.ConditionStalled) {
		l.T.Errorf("machine %s does not name %s: %s", name, other, testbed.Describe(m.Status.Conditions))
	}
}

// done runs a claim and waits for its end.
func (l *lab) done(claim string, machines ...string) *v1alpha1.WorkClaim {
	l.T.Helper()
	l.Create(l.Claim(claim, machines...))
	return l.AwaitClaim(claim, v1alpha1.ReasonComplete)
}

// testRenamed renames a manifest: the new object is there before the old one is pruned, and then it is the same machine, to which nothing is
// done again.
func (l *lab) testRenamed() {
	before := l.boxed("renamed-old", "renamed", "192.0.2.1:22")
	l.Create(before)
	id := l.AwaitMachine(before.Name, v1alpha1.ReasonRecorded).Status.MachineID
	l.done("before-rename", before.Name)
	l.Create(l.boxed("renamed-new", "renamed", "192.0.2.1:22"))
	l.awaitConflict("renamed-new", v1alpha1.ReasonIdentityConflict, before.Name)
	l.AwaitMachine(before.Name, v1alpha1.ReasonRecorded)
	l.Remove(before)
	if now := l.AwaitMachine("renamed-new", v1alpha1.ReasonRecorded); now.Status.MachineID != id || now.Status.Tags.AgentStarted.StartTime == nil {
		l.T.Errorf("renamed, the machine is %s with tags %+v; it was %s", now.Status.MachineID, now.Status.Tags, id)
	}
	if claim := l.done("after-rename", "renamed-new"); !slices.Contains(claim.Status.SkippedMachines, "renamed-new") {
		l.T.Errorf("skipped are %v", claim.Status.SkippedMachines)
	}
	if n := l.Count(testbed.CountOf, "after-rename", "Started"); n != 0 {
		l.T.Errorf("%d works were started on a machine that was renamed", n)
	}
}

// testBackUnderAnotherName deletes a machine, which is retained. Until it is back nothing is done to it, whatever selects it.
func (l *lab) testBackUnderAnotherName() {
	before := l.boxed("away", "back", "192.0.2.2:22")
	before.Labels = map[string]string{"scene": "back"}
	l.Create(before)
	id := l.AwaitMachine(before.Name, v1alpha1.ReasonRecorded).Status.MachineID
	l.Remove(before)
	l.AwaitGone(before)
	l.AwaitCount("its view is lost", 1, "SELECT count(*) FROM machine_state WHERE machine_id::text = $1 AND 'ViewLost' = ANY(facts)", id)
	drain := l.Claim("drain-back")
	drain.Spec.Mode, drain.Spec.Machines.Names = v1alpha1.WorkModeDrain, nil
	drain.Spec.Machines.Selector = &v1alpha1.LabelSelector{MatchLabels: map[string]v1alpha1.LabelValue{"scene": "back"}}
	l.Create(drain, l.Claim("names-back", before.Name))
	l.AwaitClaim(drain.Name, v1alpha1.ReasonNoMachineSelected)
	l.AwaitClaim("names-back", v1alpha1.ReasonNoSuchMachine)
	after := l.boxed("back", "back", "192.0.2.2:22")
	after.Labels = before.Labels
	l.Create(after)
	if now := l.AwaitMachine(after.Name, v1alpha1.ReasonRecorded); now.Status.MachineID != id {
		l.T.Errorf("under another name the machine is %s, it was %s", now.Status.MachineID, id)
	}
	l.AwaitClaim(drain.Name, v1alpha1.ReasonComplete)
	if got := testbed.EventNames(l.History(drain.Name)[after.Name]); got != "Started Finished" {
		l.T.Errorf("history of %s: %s", after.Name, got)
	}
}

// testCopied copies manifests and changes less than is needed: no row comes of it, and no work.
func (l *lab) testCopied() {
	l.Create(l.boxed("original", "original", "192.0.2.3:22"))
	l.AwaitMachine("original", v1alpha1.ReasonRecorded)
	l.Create(l.boxed("same-box", "original", "192.0.2.3:22"), l.boxed("same-address", "another", "192.0.2.3:22"))
	l.awaitConflict("same-box", v1alpha1.ReasonIdentityConflict, "original")
	l.awaitConflict("same-address", v1alpha1.ReasonAddressConflict, "original")
	l.Create(l.Claim("copies", "same-box", "same-address"))
	l.AwaitClaim("copies", v1alpha1.ReasonNoSuchMachine)
	if n := l.Count(testbed.CountOf, "copies", "Started"); n != 0 {
		l.T.Errorf("%d works were started on copies", n)
	}
	if n := l.Count("SELECT count(*) FROM machine_identities WHERE name IN ('same-box', 'same-address')"); n != 0 {
		l.T.Errorf("%d copies were recorded", n)
	}
	l.AwaitMachine("original", v1alpha1.ReasonRecorded)
}

// testAddressesSwapped swaps two addresses in one commit. Neither is believed; with a free one in between both find their place by themselves.
func (l *lab) testAddressesSwapped() {
	a, b, free := "192.0.2.4:22", "192.0.2.5:22", "192.0.2.6:22"
	l.Create(l.boxed("swap-a", "swap-a", a), l.boxed("swap-b", "swap-b", b))
	for _, name := range []string{"swap-a", "swap-b"} {
		l.AwaitMachine(name, v1alpha1.ReasonRecorded)
	}
	l.readdress("swap-a", b)
	l.readdress("swap-b", a)
	l.awaitConflict("swap-a", v1alpha1.ReasonAddressConflict, "swap-b")
	l.awaitConflict("swap-b", v1alpha1.ReasonAddressConflict, "swap-a")
	rows := func() string {
		return l.Table(l.T.Context(), "SELECT name, address FROM machine_identities WHERE name LIKE 'swap-%' ORDER BY name")
	}
	if got := rows(); !strings.Contains(got, "swap-a | "+a) || !strings.Contains(got, "swap-b | "+b) {
		l.T.Errorf("an address was believed:\n%s", got)
	}
	l.readdress("swap-a", free)
	l.AwaitMachine("swap-b", v1alpha1.ReasonRecorded)
	l.readdress("swap-a", b)
	l.Eventually(testbed.Patience, "both have the other's address", func(context.Context) error {
		if got := rows(); !strings.Contains(got, "swap-a | "+b) || !strings.Contains(got, "swap-b | "+a) {
			return errors.New(got)
		}
		return nil
	})
}

func (l *lab) readdress(name, address string) {
	l.T.Helper()
	m, err := l.ReadMachine(l.T.Context(), name)
	if err != nil {
		l.T.Fatal(err)
	}
	before := m.DeepCopy()
	m.Spec.Address = address
	if err := l.Client.Patch(l.T.Context(), m, client.MergeFrom(before)); err != nil {
		l.T.Fatal(err)
	}
}

// testClaimReverted reverts the commit of a claim that is done, reverts the revert, and edits it: a key is carried out once.
func (l *lab) testClaimReverted() {
	l.Create(l.boxed("reverted-1", "reverted-1", ""), l.boxed("reverted-2", "reverted-2", ""))
	for _, name := range []string{"reverted-1", "reverted-2"} {
		l.AwaitMachine(name, v1alpha1.ReasonRecorded)
	}
	first := l.done("reverted", "reverted-1")
	history := l.History("reverted")
	for range 2 {
		l.Remove(l.Claim("reverted"))
		l.AwaitGone(l.Claim("reverted"))
		l.Create(l.Claim("reverted", "reverted-1"))
		again := l.AwaitClaim("reverted", v1alpha1.ReasonComplete)
		if again.UID == first.UID || !again.Status.CompletionTime.Equal(first.Status.CompletionTime) || again.Status.Progress != "1/1" {
			l.T.Errorf("made again it says %+v, before it was %+v", again.Status, first.Status)
		}
		if message := testbed.Condition(again.Status.Conditions, v1alpha1.ConditionReady).Message; !strings.Contains(message, "another name or key") {
			l.T.Errorf("it does not say how to do it again: %s", message)
		}
	}
	// Another spec in its place.
	l.Remove(l.Claim("reverted"))
	l.AwaitGone(l.Claim("reverted"))
	l.Create(l.Claim("reverted", "reverted-2"))
	conflict := l.AwaitClaim("reverted", v1alpha1.ReasonKeyConflict)
	if message := testbed.Condition(conflict.Status.Conditions, v1alpha1.ConditionReady).Message; !strings.Contains(message, "another key or name") {
		l.T.Errorf("it does not say what to do: %s", message)
	}
	if now := l.History("reverted"); fmt.Sprint(now) != fmt.Sprint(history) {
		l.T.Errorf("something was done: %v, before it was %v", now, history)
	}
}

// testTTL has a robot make again what its time to live has deleted: nothing is done, however often.
func (l *lab) testTTL() {
	l.Create(l.boxed("ttl", "ttl", ""))
	l.AwaitMachine("ttl", v1alpha1.ReasonRecorded)
	manifest := func() *v1alpha1.WorkClaim {
		c := l.Claim("ttl", "ttl")
		c.Spec.TTLSecondsAfterFinished = ptr.To[int32](1)
		return c
	}
	for round := range 3 {
		l.Create(manifest())
		l.Eventually(testbed.Patience, fmt.Sprintf("the claim says in round %d that it is complete, and is deleted", round), func(ctx context.Context) error {
			c, err := l.ReadClaim(ctx, "ttl")
			if err == nil {
				return fmt.Errorf("it is there, %s, and ended at %v", testbed.Describe(c.Status.Conditions), c.Status.CompletionTime)
			}
			return client.IgnoreNotFound(err)
		})
	}
	if got := testbed.EventNames(l.History("ttl")["ttl"]); got != "Started Finished" {
		l.T.Errorf("history: %s", got)
	}
	if n := l.Count("SELECT count(*) FROM claims WHERE claim_key = 'ttl' AND state = 'Complete' AND succeeded = 1 AND completed_at < clock_timestamp() - interval '1 second'"); n != 1 {
		l.T.Errorf("the claim's row: %s", l.Table(l.T.Context(), "SELECT state, succeeded, active, failed FROM claims WHERE claim_key = 'ttl'"))
	}
	var m *v1alpha1.Machine
	l.Eventually(time.Minute, "the machine shows its agent", func(ctx context.Context) (err error) {
		if m, err = l.ReadMachine(ctx, "ttl"); err == nil && m.Status.Tags.AgentStarted.StartTime == nil {
			err = errors.New("it does not")
		}
		return err
	})
}
