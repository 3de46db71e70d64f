// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// clockEnv names the environment variable that says by how many seconds the wall clock of a program of setClock is off.
const clockEnv = "BMDB_CLOCK_OFFSET_SECONDS"

// wallOffset is added to the standard library's package time.
const wallOffset = `package time

import "syscall"

var wallOffset = readWallOffset()

func readWallOffset() (offset int64) {
	text, _ := syscall.Getenv("` + clockEnv + `")
	for _, c := range text {
		if c >= '0' && c <= '9' {
			offset = offset*10 + int64(c-'0')
		}
	}
	if len(text) > 0 && text[0] == '-' {
		return -offset
	}
	return offset
}
`

// TestF8 sets the clock of one pod an hour ahead and that of another an hour back: of everything in the process, as its standard library has another
// time.Now. They work as the third does, whose clock is right. The compilation of all packages with that library takes minutes, and is for
// the full run; the quick one sees that nobody new reads the clock.
func TestF8(t *testing.T) {
	t.Parallel()
	verifyReadersOfClock(t)
	if run.quick {
		return
	}
	programs := &testbed.Programs{Tags: run.programs.Tags, Overlay: setClock(t)}
	t.Cleanup(func() {
		if err := programs.Remove(); err != nil {
			t.Error(err)
		}
	})
	const lease = 10 * time.Second // a busy machine must cost no session
	r := newRig(t, "F8", rigOptions{Options: testbed.Options{Programs: programs}, lease: lease})
	for i, offset := range []time.Duration{time.Hour, -time.Hour, 0} {
		r.pods[i].Env = append(r.pods[i].Env, fmt.Sprintf("%s=%d", clockEnv, int(offset.Seconds())))
	}
	r.start()
	r.fleet(50*time.Millisecond, 10)
	r.watchRules()
	work := r.feed(24)
	for _, p := range r.pods {
		r.AwaitSome(p.Name+" works", "SELECT count(*) FROM work_history h JOIN sessions s ON s.session_id = h.session_id WHERE h.event = 'Finished' AND s.session_runtime_info = $1", p.Name)
	}
	r.during(30 * time.Second)
	// Sessions live by the database's clock and a monotonic one.
	if n := r.Count("SELECT count(*) FROM sessions WHERE session_ended_at IS NOT NULL"); n > 0 {
		t.Errorf("%d sessions were lost", n)
	}
	for _, p := range r.pods { // takeover, with clocks that differ by two hours
		if p.kill(p.process.Load()) {
			r.struck("killed with clocks that differ")
		}
		r.awaitGivenUp(p)
		p.launch()
		r.awaitLiving(p)
	}
	work.stop()
	for i, p := range r.pods {
		entries, _ := p.Logged(0, func(testbed.LogEntry) bool { return true })
		at, err := time.Parse(time.RFC3339Nano, entries[len(entries)-1].Text("time"))
		if off := time.Until(at); err != nil || i < 2 && off.Abs() < 50*time.Minute {
			t.Errorf("the clock of %s is off by %s (%v)", p.Name, off, err)
		} else if i < 2 {
			r.struck("pod whose clock was off by an hour")
		}
	}
	r.verify()
	r.require("pod whose clock was off by an hour", "killed with clocks that differ")
}

// setClock writes what replaces the standard library's time.Now, and returns the file that tells the compiler.
func setClock(t *testing.T) (overlay string) {
	t.Helper()
	dir := t.TempDir()
	root, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	source := filepath.Join(strings.TrimSpace(string(root)), "src", "time", "time.go")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	const before = "\tsec, nsec, mono := runtimeNow()\n"
	changed := strings.Replace(string(text), before, before+"\tsec += wallOffset\n", 1)
	if changed == string(text) {
		t.Fatalf("time.Now of %s is not what this test knows", runtime.Version())
	}
	files := map[string]string{"time.go": changed, "offset.go": wallOffset}
	replace := map[string]string{source: filepath.Join(dir, "time.go"), filepath.Join(filepath.Dir(source), "zz_offset.go"): filepath.Join(dir, "offset.go")}
	list, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	files["overlay.json"] = string(list)
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "overlay.json")
}

// readersOfClock are the functions of the product that read the wall clock, by file, and what for. The others that call time.Now only
// ask how long something took, which is counted by a monotonic clock.
func readersOfClock() map[string]string {
	return map[string]string{
		"bmdb/claim_outlook.go retryOf":              "how soon a claim looks again, within bounds of its own",
		"bmdb/session.go beaten":                     "shown: the last beat",
		"controllers/workclaim_phases.go afterwards": "the TTL of a finished claim's object, as that of Jobs; what was done stays known",
		"controllers/workclaim_phases.go elsewhere":  "how long another replica may take to show an end, monotonic",
		"controllers/workclaim_phases.go wait":       "how long an object may wait to be looked at, monotonic",
		"controllers/objects.go claimChanged":        "the same",
		"controllers/objects.go ClaimChanged":        "the same",
		"controllers/finalizer.go ":                  "how long a pod's own writes are remembered, monotonic; the API server refuses what is made from an old copy",
		"controllers/machine_controller.go ":         "the same",
		"controllers/workclaim_controller.go ":       "the same",
		"controllers/workclaim_phases.go show":       "shown",
		"controllers/machine_phases.go ":             "shown",
		"controllers/providerconfig_controller.go ":  "shown",
		"controllers/status.go ":                     "the interval of status writes, monotonic",
		"controllers/release.go ":                    "for how long no claim has begun or ended, monotonic",
		"internal/metrics/metrics.go ":               "shown",
		"internal/metrics/reader.go ":                "shown",
		"internal/metrics/collect.go ":               "shown",
		"internal/provider/ssh/command.go ":          "deadline of a context, monotonic",
	}
}

// verifyReadersOfClock sees that who reads the clock is known, so that who is new is thought about.
func verifyReadersOfClock(t *testing.T) {
	t.Helper()
	known, readers := readersOfClock(), 0
	for _, dir := range []string{"bmdb", "controllers", "internal", "cmd/bmdb-operator"} {
		err := filepath.WalkDir(filepath.Join("../..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "devenv") || strings.Contains(path, "test/") {
				return err
			}
			for _, reader := range wallReaders(t, path) {
				readers++
				name := strings.TrimPrefix(filepath.ToSlash(path), "../../")
				if known[name+" "+reader] == "" && known[name+" "] == "" {
					t.Errorf("%s of %s reads the wall clock: no decision may hang on it; see readersOfClock", reader, name)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	run.tally.add("F8", "uses of the wall clock that are known", int64(readers))
}

// wallReaders are the functions of a file that do more with the clock than to ask how long something takes.
func wallReaders(t *testing.T, path string) (names []string) {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range file.Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selected, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			on, _ := selected.X.(*ast.Ident)
			inner, _ := selected.X.(*ast.SelectorExpr)
			switch {
			case on != nil && on.Name == "time" && selected.Sel.Name == "Until",
				// time.Now().UnixNano() and the like: no longer monotonic.
				strings.HasPrefix(selected.Sel.Name, "Unix") && isNow(selected.X),
				inner != nil && strings.EqualFold(inner.Sel.Name, "clock") && selected.Sel.Name == "Now":
				names = append(names, f.Name.Name)
			}
			return true
		})
	}
	return names
}

func isNow(e ast.Expr) bool {
	call, ok := e.(*ast.CallExpr)
	if !ok {
		return false
	}
	selected, ok := call.Fun.(*ast.SelectorExpr)
	return ok && selected.Sel.Name == "Now"
}
