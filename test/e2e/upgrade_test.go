// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/utils/ptr"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

const (
	orderedMachines = 10              // that are new with each claim; as many of the one before are claimed again
	workTakes       = 3 * time.Second // for each machine
)

// TestRollingUpgrade replaces two operators, one by one, by two of the next schema version, and these by two of the version before again,
// while machines are worked on. The migration, and pods of the other version beside it, cost nobody any work; who is told to end hands
// over; all counts are exact at any time, and at the end everything is done, each machine once.
func TestRollingUpgrade(t *testing.T) {
	l := newLab(t, testbed.Options{})
	next := l.in(t)
	next.Programs = nextPrograms.Build(t)
	u := &upgrade{lab: l, t: t}
	u.pods = []*testbed.Operator{l.Start("before-a"), l.Start("before-b")}
	fleet := testbed.Latency(workTakes)
	config := l.Simulated("fleet", fleet)
	config.Spec.Limits.Parallelism = ptr.To[int32](2 * orderedMachines)
	l.Create(config)
	l.CreateFleet("fleet", testbed.Names("sim", orderedMachines)...)
	verify := l.Watch(testbed.Rules())

	u.stage("the old version migrates to nothing new", func() { u.migrate(l, migrations.Latest) })
	u.stage("the schema is migrated", func() { u.migrate(next, migrations.Latest+1) })
	u.stage("pods of the new version replace the old ones", func() { u.replace(next, "after") })
	u.stage("the schema stays as it is", func() { u.migrate(l, migrations.Latest+1) })
	u.stage("pods of the old version replace the new ones", func() { u.replace(l, "again") })
	for _, claim := range u.claims {
		l.AwaitClaim(claim, v1alpha1.ReasonComplete)
	}
	verify()
	u.verify()
}

// upgrade is what is under way.
type upgrade struct {
	lab    *lab
	t      *testing.T
	pods   []*testbed.Operator // that run
	ended  []*testbed.Operator // that were told to
	claims []string            // so far
}

// stage does something while machines are worked on, and waits until more of them are, by the pods that run then.
func (u *upgrade) stage(what string, do func()) {
	u.t.Helper()
	u.work(what)
	do()
	u.work(what + ": and then")
	u.undisturbed(what)
	u.t.Logf("%s: %d works have ended, %d go on", what, u.lab.Count("SELECT count(*) FROM work_history WHERE phase = 1"),
		u.lab.Count("SELECT count(*) FROM work WHERE work_id IS NOT NULL"))
}

// work orders more work, and waits until one of the pods that run has begun with it.
func (u *upgrade) work(what string) {
	u.t.Helper()
	n := len(u.claims)
	machines := testbed.Names("sim", (n+2)*orderedMachines)[n*orderedMachines:]
	u.lab.CreateFleet("fleet", machines[orderedMachines:]...)
	claim := u.lab.Claim(fmt.Sprintf("order-%d", n), machines...)
	u.lab.Create(claim)
	u.claims = append(u.claims, claim.Name)
	u.lab.AwaitSome(what+": machines are worked on", `SELECT count(*) FROM work w JOIN sessions s ON s.session_id = w.session_id
		WHERE w.work_id IS NOT NULL AND w.claim_key = $1 AND s.session_runtime_info = ANY($2)`, claim.Name, podNames(u.pods))
}

// migrate runs a version's init container.
func (u *upgrade) migrate(version *lab, want int) {
	u.t.Helper()
	if out, err := version.Run(u.lab.Database, "migrate"); err != nil {
		u.t.Fatalf("migrate: %v\n%s", err, out)
	}
	if got := u.lab.Count("SELECT max(version_id) FROM bmdb_schema_version WHERE is_applied"); got != want {
		u.t.Errorf("the schema is at version %d, want %d", got, want)
	}
}

// replace starts a pod of a version and then tells one of the others to end, as a Deployment does, until none of them is left.
func (u *upgrade) replace(version *lab, name string) {
	u.t.Helper()
	for i, old := range slices.Clone(u.pods) {
		u.pods = append(u.pods, version.Start(fmt.Sprintf("%s-%c", name, 'a'+i)))
		u.work("versions work side by side")
		u.undisturbed("versions work side by side")
		u.pods = slices.DeleteFunc(u.pods, func(o *testbed.Operator) bool { return o == old })
		u.ended = append(u.ended, old)
		old.Terminate()
	}
}

// undisturbed fails the test where work ended otherwise than it should, but for that of pods that were told to end.
func (u *upgrade) undisturbed(what string) {
	u.t.Helper()
	const disturbed = `FROM work_history h JOIN sessions s ON s.session_id = h.session_id
		WHERE h.phase = 1 AND h.event <> 'Finished' AND (h.event NOT IN ('Canceled', 'Released') OR NOT s.session_runtime_info = ANY($1))`
	if n := u.lab.Count("SELECT count(*) "+disturbed, podNames(u.ended)); n > 0 {
		u.t.Errorf("%s: %d works were disturbed:\n%s", what, n,
			u.lab.Table(u.t.Context(), "SELECT s.session_runtime_info, h.event, h.failed_cause "+disturbed+" LIMIT 5", podNames(u.ended)))
	}
}

// verify checks what everything has come to.
func (u *upgrade) verify() {
	u.t.Helper()
	u.undisturbed("at the end")
	if err := u.lab.Broken(u.t.Context(), append(testbed.Rules(), testbed.RulesAtRest()...)); err != nil {
		u.t.Error(err)
	}
	machines := (len(u.claims) + 1) * orderedMachines
	if n := u.lab.Count("SELECT count(DISTINCT machine_id) FROM work_history WHERE event = 'Finished'"); n != machines {
		u.t.Errorf("%d of %d machines are done", n, machines)
	}
	handed := u.lab.Count("SELECT count(*) FROM work_history WHERE event IN ('Canceled', 'Released')")
	if most := len(u.ended) * 2 * orderedMachines; handed > most {
		u.t.Errorf("%d works were handed over, want at most %d", handed, most)
	}
	if n := u.lab.Count("SELECT count(*) FROM sessions WHERE session_end_reason IS DISTINCT FROM 'closed' AND session_ended_at IS NOT NULL"); n > 0 {
		u.t.Errorf("%d sessions were lost", n)
	}
	u.lab.VerifyStatuses()
	u.lab.Eventually(testbed.Patience, "one of the pods counts the machines", func(ctx context.Context) error {
		var known []float64
		for _, o := range u.pods {
			if n, err := o.Gauge(ctx, "bmdb_machines_known"); err == nil {
				known = append(known, n)
			}
		}
		if len(known) != 1 || int(known[0]) != machines {
			return fmt.Errorf("pods know of %v", known)
		}
		return nil
	})
	for _, o := range append(slices.Clone(u.pods), u.ended...) {
		// A schema that is not what a statement takes it for.
		if entries, _ := o.Logged(0, func(e testbed.LogEntry) bool { return strings.Contains(fmt.Sprint(e), "SQLSTATE") }); len(entries) > 0 {
			u.t.Errorf("the database has refused something of %s %d times, as %v", o.Name, len(entries), entries[0])
		}
		if n := u.lab.Count(`SELECT count(*) FROM work_history h JOIN sessions s ON s.session_id = h.session_id
			WHERE h.event = 'Started' AND s.session_runtime_info = $1`, o.Name); n == 0 {
			u.t.Logf("%s has worked on no machine", o.Name)
		}
	}
	u.t.Logf("%d machines done, %d works handed over by %d pods that ended", machines, handed, len(u.ended))
}

func podNames(pods []*testbed.Operator) []string {
	list := make([]string, 0, len(pods))
	for _, o := range pods {
		list = append(list, o.Name)
	}
	return list
}
