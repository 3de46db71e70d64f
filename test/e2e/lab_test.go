// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// logsEnv names the environment variable with a directory that the operators' logs are kept in.
const logsEnv = "BMDB_E2E_LOGS"

// lab is what a test has: a namespace of a control plane, a database, and operators that serve the one from the other. Its methods
// fail the test; they are for the test's goroutine unless they say otherwise.
type lab struct {
	t         *testing.T
	dir       string
	programs  string
	plane     *devenv.ControlPlane
	client    client.Client // without a cache; safe for concurrent use
	namespace string
	database  string        // URL
	db        *pgxpool.Pool // safe for concurrent use
	operators *[]*operator  // all that were ever started, of subtests too
}

// labOptions are what a lab may have of its own. The zero value has a fresh database and a fresh namespace of the shared control plane.
type labOptions struct {
	plane     *devenv.ControlPlane
	database  string
	namespace string
}

// newLab makes a lab, whose operators end with the test.
func newLab(t *testing.T, options labOptions) *lab {
	t.Helper()
	l := &lab{
		t: t, programs: programs.build(t), plane: options.plane, database: options.database, namespace: options.namespace, operators: &[]*operator{},
	}
	if l.database == "" {
		l.database = bmdbtest.NewURL(t)
	}
	l.dir = logDir(t)
	if l.plane == nil {
		l.plane = devtest.ControlPlane(t)
	}
	l.client = newClient(t, l.plane)
	db, err := pgxpool.New(t.Context(), l.database)
	if err != nil {
		t.Fatalf("connect to test database: %v", err)
	}
	l.db = db
	t.Cleanup(l.end)
	l.makeNamespace(options.namespace)
	l.deploy()
	return l
}

// deploy gives the operators of the lab the rights of the deployed operator's ServiceAccount, and no others.
func (l *lab) deploy() {
	l.t.Helper()
	if err := deployment.Install(l.t.Context(), l.plane, l.namespace); err != nil {
		l.t.Fatal(err)
	}
	config, err := deployment.OperatorConfig(l.t.Context(), l.plane)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := devenv.WriteKubeconfig(l.kubeconfig(), config); err != nil {
		l.t.Fatal(err)
	}
}

func logDir(t *testing.T) string {
	t.Helper()
	kept := os.Getenv(logsEnv)
	if kept == "" {
		return t.TempDir()
	}
	dir, err := os.MkdirTemp(kept, filepath.Base(t.Name())+"-")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func newClient(t *testing.T, plane *devenv.ControlPlane) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(plane.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (l *lab) makeNamespace(name string) {
	l.t.Helper()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if name == "" {
		namespace.GenerateName = "e2e-"
	}
	if err := l.client.Create(l.t.Context(), namespace); err != nil && !apierrors.IsAlreadyExists(err) {
		l.t.Fatalf("make namespace: %v", err)
	}
	l.namespace = namespace.Name
}

// kubeconfig is that of operators.
func (l *lab) kubeconfig() string { return filepath.Join(l.dir, "kubeconfig") }

func (l *lab) environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + l.dir, "KUBECONFIG=" + l.kubeconfig(), "BMDB_DATABASE_URL=" + l.database}
}

// in is the lab as a subtest uses it. What the subtest starts ends with it.
func (l *lab) in(t *testing.T) *lab {
	sub := *l
	sub.t = t
	return &sub
}

// end says what a failed test needs to be understood. The operators have ended, each with the test that started it.
func (l *lab) end() {
	if l.t.Failed() {
		l.explain()
	}
	l.db.Close()
}

// explain writes the ends of the operators' logs and the rows that matter to the test's log.
func (l *lab) explain() {
	for _, o := range *l.operators {
		l.t.Logf("the end of the log of %s:\n%s", o.name, tail(o.log))
	}
	const timeout = 10 * time.Second // the database may be what is broken
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for _, q := range []struct{ what, query string }{
		{"sessions", `SELECT session_runtime_info, session_cluster, session_created_at, session_ended_at, session_end_reason FROM sessions
			ORDER BY session_created_at DESC LIMIT 20`},
		{"claims that are not over", `SELECT pool, claim_key, state, reason, message, s.session_runtime_info AS owner, s.session_ended_at, owner_epoch, active, succeeded, failed,
			skipped, completions FROM claims c LEFT JOIN sessions s ON s.session_id = c.owner_session WHERE state IN ('Running', 'Detached') ORDER BY 1, 2 LIMIT 20`},
		{"open works", `SELECT machine_id, process, claim_key, fence, attempt, started_at, deadline, step, s.session_runtime_info FROM work w
			LEFT JOIN sessions s ON s.session_id = w.session_id WHERE work_id IS NOT NULL ORDER BY started_at LIMIT 20`},
		{"the latest history", `SELECT h.timestamp, machine_id, event, claim_key, fence, attempt, s.session_runtime_info, actor, failed_cause
			FROM work_history h LEFT JOIN sessions s ON s.session_id = h.session_id ORDER BY h.timestamp DESC LIMIT 40`},
	} {
		l.t.Logf("%s:\n%s", q.what, l.table(ctx, q.query))
	}
}

// tail is more of a log's end than package proc shows.
func tail(path string) string {
	const bytesShown = 12 << 10
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > bytesShown {
		if _, err := f.Seek(-bytesShown, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// table is the answer to a query, for people.
func (l *lab) table(ctx context.Context, query string, args ...any) string {
	rows, err := l.db.Query(ctx, query, args...)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	var text bytes.Buffer
	for _, column := range rows.FieldDescriptions() {
		fmt.Fprintf(&text, "%s | ", column.Name)
	}
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return err.Error()
		}
		text.WriteByte('\n')
		for _, v := range values {
			switch v := v.(type) {
			case [16]byte:
				fmt.Fprintf(&text, "%x | ", v[:4])
			case time.Time:
				fmt.Fprintf(&text, "%s | ", v.UTC().Format("15:04:05.000"))
			default:
				fmt.Fprintf(&text, "%v | ", v)
			}
		}
	}
	if err := rows.Err(); err != nil {
		return err.Error()
	}
	return text.String()
}

// pollInterval is between two looks of those who wait.
const pollInterval = 100 * time.Millisecond

// eventually waits until check succeeds, and ends the test when it has not after a time.
func (l *lab) eventually(within time.Duration, what string, check func(ctx context.Context) error) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), within)
	defer cancel()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	last := errors.New("nothing was looked at")
	for {
		err := check(ctx)
		if err == nil {
			return
		}
		if ctx.Err() == nil {
			last = err // what the end of our own time breaks says nothing
		}
		select {
		case <-ctx.Done():
			l.t.Fatalf("%s: not within %s: %v", what, within, last)
		case <-ticker.C:
		}
	}
}

// always ends the test when check fails within a time.
func (l *lab) always(during time.Duration, what string, check func(ctx context.Context) error) {
	l.t.Helper()
	over := time.NewTimer(during)
	defer over.Stop()
	ticker := time.NewTicker(pollInterval)
	defer ticker.Stop()
	for {
		if err := check(l.t.Context()); err != nil {
			l.t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-over.C:
			return
		case <-ticker.C:
		}
	}
}
