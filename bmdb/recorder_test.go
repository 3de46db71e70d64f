// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

var (
	sqlComment = regexp.MustCompile(`(?m)--.*$`)
	sqlString  = regexp.MustCompile(`'[^']*'`)
	mutating   = regexp.MustCompile(`(?i)\b(INSERT\s+INTO|UPDATE\s+\w+|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE)\b`)
)

// generated is a query as sqlc made it.
type generated struct {
	name, sql, kind string
	first           string // what is passed as $1
}

// generatedQueries reads the queries out of the Go that is compiled in, not out of what it should have been made of.
func generatedQueries(t *testing.T) map[string]generated {
	t.Helper()
	files, err := filepath.Glob("model/*.sql.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no generated queries: %v", err)
	}
	sqls, queries := map[string]string{}, map[string]generated{}
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
				if lit, ok := v.Values[0].(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if sqls[v.Names[0].Name], err = strconv.Unquote(lit.Value); err != nil {
						t.Fatal(err)
					}
				}
			}
			return true
		})
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || (method.Sel.Name != "Exec" && method.Sel.Name != "Query" && method.Sel.Name != "QueryRow") {
				return true
			}
			constant, ok := call.Args[1].(*ast.Ident)
			if !ok {
				return true
			}
			q := generated{sql: sqls[constant.Name], kind: method.Sel.Name}
			fields := strings.Fields(q.sql)
			if len(fields) < 4 {
				t.Fatalf("%s has no name", constant.Name)
			}
			q.name = fields[2]
			if len(call.Args) > 2 {
				switch a := call.Args[2].(type) {
				case *ast.Ident:
					q.first = a.Name
				case *ast.SelectorExpr:
					q.first = a.Sel.Name
				}
			}
			queries[q.name] = q
			return true
		})
	}
	return queries
}

// A query that writes and that the recorder does not know would change facts under nobody's mutex, and be evaluated by nobody.
func TestRecorderKnowsEveryMutation(t *testing.T) {
	t.Parallel()
	queries, known := generatedQueries(t), model.Mutations()
	if len(queries) < 20 {
		t.Fatalf("only %d queries were found", len(queries))
	}
	for name, q := range queries {
		m, listed := known[name]
		writes := mutating.MatchString(sqlString.ReplaceAllString(sqlComment.ReplaceAllString(q.sql, ""), "''"))
		switch {
		case writes && !listed:
			t.Errorf("%s writes, and model.Mutations does not list it", name)
		case !writes && listed:
			t.Errorf("%s writes nothing, and model.Mutations lists it", name)
		case writes && q.kind != "Exec":
			t.Errorf("%s writes and returns rows: make it :exec, so that it can be queued", name)
		case !writes && q.kind == "Exec":
			t.Errorf("%s only reads, and is :exec", name)
		case writes && m.Lookup == "" && !strings.EqualFold(q.first, "machineID"):
			t.Errorf("%s does not have the machine as its first parameter, but %q", name, q.first)
		}
	}
	for name := range known {
		if _, ok := queries[name]; !ok {
			t.Errorf("model.Mutations lists %s, which does not exist", name)
		}
	}
}

// What the recorder does not know is refused, and takes its transaction with it.
func TestRecorderRefusesUnknownWrites(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session()
	machine := provided(t, s, "1")
	for _, sql := range []string{"-- name: MachineForgetEverything :exec\nDELETE FROM machine_provided", "DELETE FROM machine_provided"} {
		if err := l.conn.ExecRecorded(t.Context(), sql, machine); err == nil || !strings.Contains(err.Error(), "model.Mutations") {
			t.Errorf("%q: %v", sql, err)
		}
	}
	if n := l.int("SELECT count(*) FROM machine_provided"); n != 1 {
		t.Error("it was carried out")
	}
}

// Every query that changes what is known of a machine raises its revision and leaves its eligibility as the predicate says.
func TestRecorderTouchesTheMachine(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	ctx := t.Context()
	s := l.session()
	machine := provided(t, s, "1")
	set := model.MachineSetAgentStartedParams{MachineID: machine, AgentStartedAt: time.Now(), AgentPublicKey: []byte("key")}
	request := model.MachineSetOSInstallationRequestParams{MachineID: machine, Generation: 1, OsInstallationRequestRaw: []byte("x")}
	report := model.MachineSetOSInstallationReportParams{
		MachineID: machine, Generation: 1, OsInstallationResult: model.MachineOsInstallationResultSuccess, OsInstallationReportRaw: []byte("x"),
	}
	covered := map[string]bool{"insertMachine": true, "insertMachineState": true, "MachineAddProvided": true} // by provided
	for _, step := range []struct {
		name string
		do   func(q *model.Queries) error
	}{
		{"MachineSetAgentStarted", func(q *model.Queries) error { return q.MachineSetAgentStarted(ctx, set) }},
		{"MachineSetAgentHeartbeat", func(q *model.Queries) error {
			return q.MachineSetAgentHeartbeat(ctx, model.MachineSetAgentHeartbeatParams{MachineID: machine, AgentHeartbeatAt: time.Now()})
		}},
		{"MachineSetHardwareReport", func(q *model.Queries) error {
			return q.MachineSetHardwareReport(ctx, model.MachineSetHardwareReportParams{MachineID: machine, HardwareReportRaw: []byte("x")})
		}},
		{"MachineSetOSInstallationRequest", func(q *model.Queries) error { return q.MachineSetOSInstallationRequest(ctx, request) }},
		{"MachineSetOSInstallationReport", func(q *model.Queries) error { return q.MachineSetOSInstallationReport(ctx, report) }},
		{"MachineDeleteOSInstallationRequest", func(q *model.Queries) error { return q.MachineDeleteOSInstallationRequest(ctx, machine) }},
		{"MachineDeleteAgentHeartbeat", func(q *model.Queries) error { return q.MachineDeleteAgentHeartbeat(ctx, machine) }},
		{"MachineDeleteAgentStarted", func(q *model.Queries) error { return q.MachineDeleteAgentStarted(ctx, machine) }},
		{"MachineSetTag", tag(ctx, machine, "x")},
		{"MachineDeleteTag", func(q *model.Queries) error {
			return q.MachineDeleteTag(ctx, model.MachineDeleteTagParams{MachineID: machine, Tag: "x"})
		}},
		{"MachineUpdateProviderStatus", func(q *model.Queries) error {
			return q.MachineUpdateProviderStatus(ctx, model.MachineUpdateProviderStatusParams{ProviderID: "1", Provider: model.ProviderEquinix})
		}},
	} {
		covered[step.name] = true
		before := l.int("SELECT rev FROM machine_state")
		if err := s.Transact(ctx, step.do); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if after := l.int("SELECT rev FROM machine_state"); after != before+1 {
			t.Errorf("%s: revision %d after %d", step.name, after, before)
		}
		for _, v := range findViolations(t, l.db) {
			t.Errorf("%s: %s", step.name, v)
		}
	}
	for name := range model.Mutations() {
		if !covered[name] {
			t.Errorf("%s is not tried here", name)
		}
	}
}

// An ID is made once for an operation: the attempts of one closure make the same machine.
func TestNewMachineIsTheSameInEveryAttempt(t *testing.T) {
	t.Parallel()
	g := &gates{}
	l := newLab(t, g.config)
	ctx := t.Context()
	s := l.session(bmdb.WithoutBeat())
	var ids []uuid.UUID
	g.at("transact", "COMMIT").open <- bmdb.ErrRetry
	err := s.Transact(ctx, func(q *model.Queries) error {
		for range 2 {
			m, err := q.NewMachine(ctx)
			if err != nil {
				return err
			}
			ids = append(ids, m.MachineID)
		}
		return nil
	})
	if err != nil || len(ids) != 4 || ids[0] != ids[2] || ids[1] != ids[3] || ids[0] == ids[1] {
		t.Errorf("machines %v, %v", ids, err)
	}
	if n := l.int("SELECT count(*) FROM machines"); n != 2 {
		t.Errorf("%d machines, want 2", n)
	}
	// What is no error of the database ends a closure at once.
	runs := 0
	err = s.Transact(ctx, func(*model.Queries) error {
		runs++
		return errInjected
	})
	if !errors.Is(err, errInjected) || runs != 1 {
		t.Errorf("%d runs, %v", runs, err)
	}
}

// A closure may make of an error what it likes: what the database did not allow is not committed.
func TestSwallowedGate(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session(bmdb.WithoutBeat())
	machine := provided(t, s, "1")
	l.expire(s.UUID)
	err := s.Transact(t.Context(), func(q *model.Queries) error {
		if _, err := q.GetMachinesForAgentStart(t.Context(), 1); err == nil {
			t.Error("read under a session that is over")
		}
		return q.MachineSetTag(t.Context(), model.MachineSetTagParams{MachineID: machine, Tag: "late"})
	})
	if !errors.Is(err, bmdb.ErrSessionExpired) {
		t.Errorf("got %v, want that the session has expired", err)
	}
	if n := l.int("SELECT count(*) FROM machine_tags"); n != 0 {
		t.Error("it was committed")
	}
}

// A retriever may write. What it wrote, and what the machine needs by that, is committed with the start.
func TestRetrieverThatWrites(t *testing.T) {
	t.Parallel()
	l := newLab(t)
	s := l.session(bmdb.WithoutBeat())
	l.process("Audit", "Audit", []string{"suspect"}, nil, nil, nil)
	machine := provided(t, s, "1")
	w, err := s.Work(t.Context(), model.ProcessUnitTest1, func(q *model.Queries) ([]uuid.UUID, error) {
		return []uuid.UUID{machine}, q.MachineSetTag(t.Context(), model.MachineSetTagParams{MachineID: machine, Tag: "suspect"})
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := l.state(machine, "Audit"); got != ready {
		t.Errorf("the machine needs an audit, and its row is in state %d", got)
	}
	w.Cancel(t.Context())
	checkInvariants(t, l.db, machine)
}
