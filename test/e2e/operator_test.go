// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
)

const (
	// patience bounds waits for what should come soon, on a machine whose cores are busy with other tests too.
	patience = 90 * time.Second
	// stopPatience bounds an orderly end: the operator gives its workers 10 s by default.
	stopPatience = 60 * time.Second
	// portAttempts bounds how often a start is tried when somebody else takes one of its ports.
	portAttempts = 3
)

// operator is one operator, as a pod would be; its process may change. It is used by one goroutine at a time.
type operator struct {
	lab             *lab
	name            string
	flags           []string
	env             []string
	log             string
	health, metrics string
	process         *proc.Process
}

// operator configures an operator without starting it. flags come after the ones that all have, and win.
func (l *lab) operator(name string, flags ...string) *operator {
	o := &operator{
		lab: l, name: name, log: filepath.Join(l.dir, name+".log"), env: l.environ(),
		flags: append([]string{
			"run", "--pod-name", name, "--namespaces", l.namespace, "--status-interval", "1s", "--allow-simulated", "--agent-dir", l.programs,
		}, flags...),
	}
	*l.operators = append(*l.operators, o)
	l.t.Cleanup(func() {
		if !o.running() {
			return
		}
		if err := o.process.Stop(context.Background(), syscall.SIGKILL); err != nil {
			l.t.Error(err)
		}
	})
	return o
}

// start configures an operator, starts it, and waits until it is ready.
func (l *lab) start(name string, flags ...string) *operator {
	l.t.Helper()
	o := l.operator(name, flags...)
	o.start()
	return o
}

// start starts the process and waits until it is ready.
func (o *operator) start() {
	o.lab.t.Helper()
	ctx, cancel := context.WithTimeout(o.lab.t.Context(), patience)
	defer cancel()
	var err error
	for range portAttempts {
		o.launch()
		if err = o.process.WaitReady(ctx, o.ready); err == nil || !strings.Contains(proc.Tail(o.log), "address already in use") {
			break
		}
	}
	if err != nil {
		o.lab.t.Fatalf("start %s: %v", o.name, err)
	}
}

// launch starts the process without waiting for it, at new addresses.
func (o *operator) launch() {
	o.lab.t.Helper()
	var ports []string
	for range 2 {
		port, err := proc.FreePort()
		if err != nil {
			o.lab.t.Fatal(err)
		}
		ports = append(ports, "127.0.0.1:"+strconv.Itoa(port))
	}
	o.health, o.metrics = ports[0], ports[1]
	process, err := proc.Start(proc.Config{
		Path: filepath.Join(o.lab.programs, operatorProgram), Env: o.env, Log: o.log,
		Args: append(append([]string{}, o.flags...), "--health-probe-bind-address", o.health, "--metrics-bind-address", o.metrics),
	})
	if err != nil {
		o.lab.t.Fatalf("start %s: %v", o.name, err)
	}
	o.process = process
}

// running tells whether the process has not ended.
func (o *operator) running() bool {
	if o.process == nil {
		return false
	}
	select {
	case <-o.process.Done():
		return false
	default:
		return true
	}
}

// kill ends the process with SIGKILL and tells whether that is what it died of.
func (o *operator) kill() bool {
	o.lab.t.Helper()
	if err := o.process.Stop(context.Background(), syscall.SIGKILL); err != nil {
		o.lab.t.Fatal(err)
	}
	status, ok := o.process.Exit().Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// signal sends a signal without waiting for what comes of it.
func (o *operator) signal(s syscall.Signal) {
	o.lab.t.Helper()
	if err := o.process.Signal(s); err != nil {
		o.lab.t.Fatal(err)
	}
}

// terminate asks the process to end, as the kubelet does, and fails the test unless it ends well.
func (o *operator) terminate() {
	o.lab.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := o.process.Stop(ctx, syscall.SIGTERM); err != nil {
		o.lab.t.Fatal(err)
	}
	if code := o.process.Exit().ExitCode(); code != 0 {
		o.lab.t.Errorf("%s was asked to end, and ended with %d: %v", o.name, code, o.process.Err())
	}
}

// ready asks the process whether it is ready.
func (o *operator) ready(ctx context.Context) error {
	_, err := get(ctx, "http://"+o.health+"/readyz")
	return err
}

// gauge reads the sum of a metric over its labels.
func (o *operator) gauge(ctx context.Context, name string) (float64, error) {
	body, err := get(ctx, "http://"+o.metrics+"/metrics")
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(body) {
		series, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		if base, _, _ := strings.Cut(series, "{"); base != name {
			continue
		}
		value, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, fmt.Errorf("read metric %s of %s: %w", name, o.name, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", o.name, name)
	}
	return sum, nil
}

// logEntry is a line of an operator's log.
type logEntry map[string]any

func (e logEntry) text(key string) string {
	s, _ := e[key].(string)
	return s
}

// endsOf returns what an operator says of the works for a claim that it ends, or that end for it, from an offset of its log on; by work.
func (o *operator) endsOf(claim string, from int64) map[string][]logEntry {
	o.lab.t.Helper()
	ends := map[string][]logEntry{}
	entries, _ := o.logged(from, func(e logEntry) bool {
		return e.text("claim") == claim && e.text("work") != "" && e.text("msg") != "started work"
	})
	for _, e := range entries {
		ends[e.text("work")] = append(ends[e.text("work")], e)
	}
	return ends
}

// logEnd is the offset of the log's end.
func (o *operator) logEnd() int64 {
	o.lab.t.Helper()
	_, end := o.logged(0, func(logEntry) bool { return false })
	return end
}

// logged returns the lines of the log from an offset on that match, and the offset of its end.
func (o *operator) logged(from int64, match func(logEntry) bool) (entries []logEntry, end int64) {
	o.lab.t.Helper()
	f, err := os.Open(o.log)
	if err != nil {
		o.lab.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		o.lab.t.Fatal(err)
	}
	end = from
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return entries, end // a line that is not whole yet is for the next time
		}
		end += int64(len(line))
		var e logEntry
		if json.Unmarshal(line, &e) == nil && match(e) {
			entries = append(entries, e)
		}
	}
}

// get returns the body of a page, and an error unless the answer is 200.
func get(ctx context.Context, url string) (string, error) {
	const timeout = 5 * time.Second
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return string(body), nil
}
