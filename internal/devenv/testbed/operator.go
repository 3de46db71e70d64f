// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
)

const (
	// Patience bounds waits for what should come soon, on a machine whose cores are busy with other tests too.
	Patience = 90 * time.Second
	// stopPatience bounds an orderly end: the operator gives its workers 10 s by default.
	stopPatience = 60 * time.Second
	// portAttempts bounds how often a start is tried when somebody else takes one of its ports.
	portAttempts = 3
)

// Operator is one operator, as a pod would be; its process may change. It is used by one goroutine at a time.
type Operator struct {
	Lab             *Lab
	Name            string
	Flags           []string
	Env             []string
	Log             string
	health, metrics string
	Process         *proc.Process
}

// Operator configures an operator without starting it. flags come after the ones that all have, and win.
func (l *Lab) Operator(name string, flags ...string) *Operator {
	o := &Operator{
		Lab: l, Name: name, Log: filepath.Join(l.Dir, name+".log"), Env: l.environ(),
		Flags: append([]string{
			"run", "--pod-name", name, "--namespaces", l.Namespace, "--status-interval", "1s", "--allow-simulated", "--agent-dir", l.Programs,
		}, flags...),
	}
	*l.operators = append(*l.operators, o)
	l.T.Cleanup(func() {
		if !o.Running() {
			return
		}
		if err := o.Process.Stop(context.Background(), syscall.SIGKILL); err != nil {
			l.T.Error(err)
		}
	})
	return o
}

// Start configures an operator, starts it, and waits until it is ready.
func (l *Lab) Start(name string, flags ...string) *Operator {
	l.T.Helper()
	o := l.Operator(name, flags...)
	o.Start()
	return o
}

// Start starts the process and waits until it is ready.
func (o *Operator) Start() {
	o.Lab.T.Helper()
	ctx, cancel := context.WithTimeout(o.Lab.T.Context(), Patience)
	defer cancel()
	var err error
	for range portAttempts {
		o.Launch()
		if err = o.Process.WaitReady(ctx, o.Ready); err == nil || !strings.Contains(proc.Tail(o.Log), "address already in use") {
			break
		}
	}
	if err != nil {
		o.Lab.T.Fatalf("start %s: %v", o.Name, err)
	}
}

// Launch starts the process without waiting for it, at new addresses.
func (o *Operator) Launch() {
	o.Lab.T.Helper()
	var ports []string
	for range 2 {
		port, err := proc.FreePort()
		if err != nil {
			o.Lab.T.Fatal(err)
		}
		ports = append(ports, "127.0.0.1:"+strconv.Itoa(port))
	}
	o.health, o.metrics = ports[0], ports[1]
	process, err := proc.Start(proc.Config{
		Path: filepath.Join(o.Lab.Programs, OperatorProgram), Env: o.Env, Log: o.Log,
		Args: append(append([]string{}, o.Flags...), "--health-probe-bind-address", o.health, "--metrics-bind-address", o.metrics),
	})
	if err != nil {
		o.Lab.T.Fatalf("start %s: %v", o.Name, err)
	}
	o.Process = process
}

// Running tells whether the process has not ended.
func (o *Operator) Running() bool {
	if o.Process == nil {
		return false
	}
	select {
	case <-o.Process.Done():
		return false
	default:
		return true
	}
}

// Kill ends the process with SIGKILL and tells whether that is what it died of.
func (o *Operator) Kill() bool {
	o.Lab.T.Helper()
	if err := o.Process.Stop(context.Background(), syscall.SIGKILL); err != nil {
		o.Lab.T.Fatal(err)
	}
	status, ok := o.Process.Exit().Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGKILL
}

// Signal sends a signal without waiting for what comes of it.
func (o *Operator) Signal(s syscall.Signal) {
	o.Lab.T.Helper()
	if err := o.Process.Signal(s); err != nil {
		o.Lab.T.Fatal(err)
	}
}

// Terminate asks the process to end, as the kubelet does, and fails the test unless it ends well.
func (o *Operator) Terminate() {
	o.Lab.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if err := o.Process.Stop(ctx, syscall.SIGTERM); err != nil {
		o.Lab.T.Fatal(err)
	}
	if code := o.Process.Exit().ExitCode(); code != 0 {
		o.Lab.T.Errorf("%s was asked to end, and ended with %d: %v", o.Name, code, o.Process.Err())
	}
}

// Ready asks the process whether it is ready.
func (o *Operator) Ready(ctx context.Context) error {
	_, err := get(ctx, "http://"+o.health+"/readyz")
	return err
}

// Gauge reads the sum of a metric over its labels.
func (o *Operator) Gauge(ctx context.Context, name string) (float64, error) {
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
			return 0, fmt.Errorf("read metric %s of %s: %w", name, o.Name, err)
		}
		sum, found = sum+value, true
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", o.Name, name)
	}
	return sum, nil
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
