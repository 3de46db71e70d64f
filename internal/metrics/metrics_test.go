// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics_test

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/metrics"
)

// fakeDatabase answers what it is told to.
type fakeDatabase struct {
	oldest uuid.UUID
	err    error
	fleets int
}

func (d *fakeDatabase) OldestSession(context.Context) (uuid.UUID, error) { return d.oldest, d.err }

func (d *fakeDatabase) WorkGauges(context.Context) (map[string]bmdb.WorkGauge, error) {
	return map[string]bmdb.WorkGauge{"AgentStart": {Open: 3, Overdue: 1, Oldest: time.Hour}}, d.err
}

func (d *fakeDatabase) FleetGauges(context.Context, time.Duration) (bmdb.FleetGauges, error) {
	d.fleets++
	return bmdb.FleetGauges{Machines: 12, Pages: 1, Processes: map[string]bmdb.ProcessGauge{
		"AgentStart": {Eligible: 5, Held: 4, Locked: 3, BackedOff: 2, Unmanaged: 1, OldestEligible: time.Minute},
	}}, d.err
}

func (d *fakeDatabase) ConnectionsInUse() (inUse, most int) { return 2, 16 }

// claims is a cache of claims in many states.
type claims []v1alpha1.WorkClaim

func (claims) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("nobody asks for one")
}

func (c claims) List(_ context.Context, list client.ObjectList, _ ...client.ListOption) error {
	list.(*v1alpha1.WorkClaimList).Items = c
	return nil
}

// claim has conditions that are True, or False where a - stands before them; Ready's reason is the first word.
func claim(reason v1alpha1.Reason, types ...string) v1alpha1.WorkClaim {
	var c v1alpha1.WorkClaim
	for _, t := range types {
		condition := metav1.Condition{Type: strings.TrimPrefix(t, "-"), Status: metav1.ConditionTrue, Reason: string(reason)}
		if condition.Type != t {
			condition.Status = metav1.ConditionFalse
		}
		c.Status.Conditions = append(c.Status.Conditions, condition)
	}
	return c
}

var manyClaims = claims{
	claim(""),
	claim(v1alpha1.ReasonWorking, "-Ready", "Reconciling"),
	claim(v1alpha1.ReasonWorking, "-Ready", "Reconciling"),
	claim(v1alpha1.ReasonIdle, "Ready"),
	claim(v1alpha1.ReasonComplete, "Ready", "Finished", "Complete"),
	claim(v1alpha1.ReasonQuarantined, "-Ready", "Stalled"),
	claim(v1alpha1.ReasonDeadlineExceeded, "-Ready", "Stalled", "Finished", "Failed", "-Complete"),
	claim(v1alpha1.ReasonSuspended, "-Ready"),
}

// read lets a reader read once, as the pod of a session.
func read(t *testing.T, m *metrics.Metrics, database *fakeDatabase, session *bmdb.Session) {
	t.Helper()
	r := metrics.NewReader(m, metrics.Sources{
		Database: database, Session: func() *bmdb.Session { return session }, Claims: manyClaims,
		Backlog: func() (int, time.Duration) { return 7, 3 * time.Second },
	}, logr.Discard())
	r.Read(t.Context())
}

// observed returns a registry in which each metric has a value.
func observed(t *testing.T) *prometheus.Registry {
	t.Helper()
	registry := prometheus.NewRegistry()
	m, err := metrics.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	m.SessionStarted()
	m.SessionEnded("closed")
	m.SessionStarted()
	m.Beat(true, time.Millisecond)
	m.Beat(false, time.Second)
	m.WorkStarted("AgentStart")
	m.WorkEnded("AgentStart", "Finished", 2*time.Second)
	m.WorkTakenOver("AgentStart")
	m.TransactionRetried("start", "40001")
	m.TransactionEnded("start", true, 3*time.Millisecond)
	m.Pool(3, 64)
	m.Claims(2)
	m.WorkerStuck("AgentStart")
	session := &bmdb.Session{UUID: uuid.New()}
	read(t, m, &fakeDatabase{oldest: session.UUID}, session)
	return registry
}

// golden is a file that UPDATE_GOLDEN=1 writes anew.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil { //nolint:gosec // It is a file of the repository.
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is out of date; make generate writes it anew (-want +got):\n%s", file, diff)
	}
}

const (
	namesFile = "testdata/metrics.txt"
	pageFile  = "../../docs/reference/metrics.md"
)

// Names, types and labels are what dashboards and alerts are made of: they are only added to.
func TestNamesAreGolden(t *testing.T) {
	families, err := familiesOf(observed(t))
	if err != nil {
		t.Fatal(err)
	}
	var lines strings.Builder
	for _, f := range families {
		lines.WriteString(f.String() + "\n")
	}
	golden(t, namesFile, lines.String())
}

func TestPageIsGenerated(t *testing.T) {
	families, err := familiesOf(observed(t))
	if err != nil {
		t.Fatal(err)
	}
	golden(t, pageFile, pageOf(families))
}

func TestMetricsAreLinted(t *testing.T) {
	problems, err := testutil.GatherAndLint(observed(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestNewRefusesTwice(t *testing.T) {
	registry := prometheus.NewRegistry()
	if _, err := metrics.New(registry); err != nil {
		t.Fatal(err)
	}
	if _, err := metrics.New(registry); err == nil {
		t.Error("registered twice without an error")
	}
}

func compare(t *testing.T, registry *prometheus.Registry, want string, names ...string) {
	t.Helper()
	// Help is in the golden file.
	if err := testutil.GatherAndCompare(registry, strings.NewReader(withHelp(t, registry, want)), names...); err != nil {
		t.Error(err)
	}
}

func withHelp(t *testing.T, registry *prometheus.Registry, want string) string {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, f := range families {
		if strings.Contains(want, f.GetName()+"{") || strings.Contains(want, f.GetName()+" ") {
			text.WriteString("# HELP " + f.GetName() + " " + f.GetHelp() + "\n# TYPE " + f.GetName() + " gauge\n")
			for line := range strings.Lines(want) {
				if name, _, _ := strings.Cut(strings.TrimSpace(line), "{"); strings.Split(name, " ")[0] == f.GetName() {
					text.WriteString(strings.TrimSpace(line) + "\n")
				}
			}
		}
	}
	return text.String()
}

func TestWhatIsRead(t *testing.T) {
	compare(t, observed(t), `
		bmdb_claims{reason="",state="New"} 1
		bmdb_claims{reason="Working",state="Reconciling"} 2
		bmdb_claims{reason="Idle",state="Ready"} 1
		bmdb_claims{reason="Complete",state="Complete"} 1
		bmdb_claims{reason="Quarantined",state="Stalled"} 1
		bmdb_claims{reason="DeadlineExceeded",state="Failed"} 1
		bmdb_claims{reason="Suspended",state="Suspended"} 1
		bmdb_machines{process="AgentStart",state="BackedOff"} 2
		bmdb_machines{process="AgentStart",state="Eligible"} 5
		bmdb_machines{process="AgentStart",state="Held"} 4
		bmdb_machines{process="AgentStart",state="Locked"} 3
		bmdb_machines{process="AgentStart",state="Unmanaged"} 1
		bmdb_machines_known 12
		bmdb_machines_oldest_eligible_seconds{process="AgentStart"} 60
		bmdb_works_open{process="AgentStart"} 3
		bmdb_works_overdue{process="AgentStart"} 1
		bmdb_works_oldest_seconds{process="AgentStart"} 3600
		bmdb_projections_pending 7
		bmdb_projections_oldest_seconds 3
		bmdb_database_up 1
		bmdb_database_connections_in_use 2
		bmdb_database_connections_limit 16
	`, "bmdb_claims", "bmdb_machines", "bmdb_machines_known", "bmdb_machines_oldest_eligible_seconds", "bmdb_works_open", "bmdb_works_overdue",
		"bmdb_works_oldest_seconds", "bmdb_projections_pending", "bmdb_projections_oldest_seconds", "bmdb_database_up", "bmdb_database_connections_in_use",
		"bmdb_database_connections_limit")
}

// One pod counts for its cluster. A pod that does not, or that cannot, shows no counts, rather than old ones.
func TestWhoCounts(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := metrics.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	session := &bmdb.Session{UUID: uuid.New()}
	for _, test := range []struct {
		name     string
		database *fakeDatabase
		session  *bmdb.Session
		counts   bool
		up       string
	}{
		{"the oldest session", &fakeDatabase{oldest: session.UUID}, session, true, "1"},
		{"another session is older", &fakeDatabase{oldest: uuid.New()}, session, false, "1"},
		{"the oldest again", &fakeDatabase{oldest: session.UUID}, session, true, "1"},
		{"no session", &fakeDatabase{}, nil, false, "1"},
		{"the database does not answer", &fakeDatabase{oldest: session.UUID, err: errors.New("no answer")}, session, false, "0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			read(t, m, test.database, test.session)
			n, err := testutil.GatherAndCount(registry, "bmdb_works_open", "bmdb_works_overdue", "bmdb_works_oldest_seconds", "bmdb_machines", "bmdb_machines_known")
			if err != nil {
				t.Fatal(err)
			}
			if (n > 0) != test.counts || (test.database.fleets > 0) != test.counts {
				t.Errorf("%d counts are shown, machines were counted %d times", n, test.database.fleets)
			}
			compare(t, registry, "bmdb_database_up "+test.up, "bmdb_database_up")
		})
	}
}

// The ages of a session that is over, or of one that never was, are not told.
func TestAges(t *testing.T) {
	registry := prometheus.NewRegistry()
	m, err := metrics.New(registry)
	if err != nil {
		t.Fatal(err)
	}
	count := func(what string, session, lease int) {
		t.Helper()
		for name, want := range map[string]int{"bmdb_session_age_seconds": session, "bmdb_session_lease_age_seconds": lease} {
			if n, err := testutil.GatherAndCount(registry, name); err != nil || n != want {
				t.Errorf("%s: %d of %s, %v", what, n, name, err)
			}
		}
	}
	count("before the first session", 0, 0)
	m.SessionStarted()
	count("in a session", 1, 1)
	m.SessionEnded("expired")
	count("after it", 0, 1)
}

// What a label may name is a few words of the code or of the API, or a process: never a machine, a claim, a pool or a pod.
func TestLabelsAreBounded(t *testing.T) {
	families, err := familiesOf(observed(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, label := range f.Labels {
			if !slices.Contains([]string{"process", "result", "state", "reason", "operation", "code"}, label) {
				t.Errorf("%s has label %s", f.Name, label)
			}
		}
	}
}
