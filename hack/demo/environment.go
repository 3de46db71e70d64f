// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/sshmachine"
)

const (
	machineCount = 6
	lease        = 3 * time.Second
)

// environment is everything that the demo starts, in the order of its start.
type environment struct {
	root, dir   string
	databaseURL string
	kubeconfig  string
	plane       *devenv.ControlPlane
	machines    *sshmachine.Fleet
	operators   []*operator
	stops       []func() error
}

// operator is one operator process, as a pod would be.
type operator struct {
	name    string
	process *proc.Process
	log     string
}

func newEnvironment() (*environment, error) {
	root, err := devenv.ModuleRoot()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "bmdb-demo-")
	if err != nil {
		return nil, err
	}
	e := &environment{root: root, dir: dir}
	e.onStop(func() error { return os.RemoveAll(dir) })
	return e, nil
}

func (e *environment) onStop(f func() error) { e.stops = append(e.stops, f) }

// stop ends everything in the reverse order of its start.
func (e *environment) stop() error {
	var errs []error
	for _, stop := range slices.Backward(e.stops) {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

func (e *environment) start(ctx context.Context) error {
	steps := []struct {
		what string
		do   func(context.Context) error
	}{
		{"a PostgreSQL server, with fsync on", e.startDatabase},
		{"bmdb-operator migrate: the schema of the Bare Metal Database", e.migrate},
		{"etcd, kube-apiserver and kube-controller-manager, with the CRDs", e.startControlPlane},
		{fmt.Sprintf("%d SSH machines", machineCount), e.startMachines},
		{fmt.Sprintf("two operators, with a lease of %s (60 s is the default: here it is short, so that a takeover is quick to watch)", lease), e.startOperators},
	}
	for _, s := range steps {
		began := time.Now()
		fmt.Printf("starting %s ... ", s.what)
		if err := s.do(ctx); err != nil {
			fmt.Println()
			return fmt.Errorf("start %s: %w", s.what, err)
		}
		fmt.Printf("%.1f s\n", time.Since(began).Seconds())
	}
	if note := e.machines.Reduced(); note != "" {
		fmt.Println(note)
	}
	return nil
}

func (e *environment) startDatabase(ctx context.Context) error {
	server, err := postgres.Start(ctx, postgres.Options{Durable: true})
	if err != nil {
		return err
	}
	e.onStop(server.Close)
	e.databaseURL, err = server.CreateDatabase(ctx, "bmdb")
	return err
}

func (e *environment) migrate(ctx context.Context) error {
	return e.command(ctx, e.bin("bmdb-operator"), "migrate")
}

func (e *environment) startControlPlane(ctx context.Context) error {
	plane, err := devenv.Start(ctx, devenv.Options{})
	if err != nil {
		return err
	}
	e.onStop(plane.Stop)
	e.plane = plane
	e.kubeconfig = filepath.Join(e.dir, "kubeconfig")
	return plane.Kubeconfig(e.kubeconfig)
}

func (e *environment) startMachines(ctx context.Context) error {
	fleet, err := sshmachine.Start(ctx, machineCount, sshmachine.Options{})
	if err != nil {
		return err
	}
	e.onStop(fleet.Stop)
	e.machines = fleet
	return nil
}

func (e *environment) startOperators(ctx context.Context) error {
	for _, name := range []string{"operator-a", "operator-b"} {
		if err := e.startOperator(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (e *environment) startOperator(ctx context.Context, name string) error {
	port, err := proc.FreePort()
	if err != nil {
		return err
	}
	o := &operator{name: name, log: filepath.Join(e.dir, name+".log")}
	health := fmt.Sprintf("127.0.0.1:%d", port)
	o.process, err = proc.Start(proc.Config{
		Path: e.bin("bmdb-operator"), Log: o.log, Env: e.environ(),
		Args: []string{
			"run", "--pod-name", name, "--lease", lease.String(), "--status-interval", "1s", "--agent-dir", filepath.Join(e.root, "bin"),
			"--health-probe-bind-address", health, "--metrics-bind-address", "0",
		},
	})
	if err != nil {
		return err
	}
	e.operators = append(e.operators, o)
	e.onStop(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return o.process.Stop(ctx, syscall.SIGTERM)
	})
	return o.process.WaitReady(ctx, func(ctx context.Context) error { return ready(ctx, "http://"+health+"/readyz") })
}

func (e *environment) bin(name string) string { return filepath.Join(e.root, "bin", name) }

func (e *environment) environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + e.dir, "KUBECONFIG=" + e.kubeconfig, "BMDB_DATABASE_URL=" + e.databaseURL}
}

// command runs a program in the environment; its output is shown if it fails.
func (e *environment) command(ctx context.Context, name string, args ...string) error {
	_, err := e.output(ctx, name, args...)
	return err
}

func (e *environment) output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = e.environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

func (e *environment) kubectl(ctx context.Context, args ...string) (string, error) {
	return e.output(ctx, e.plane.Kubectl(), args...)
}

// manifests writes config/samples to a directory, with the machines' real addresses, host keys and the client's private key.
func (e *environment) manifests() (string, error) {
	samples, overlay := filepath.Join(e.dir, "samples"), filepath.Join(e.dir, "overlay")
	if err := os.CopyFS(samples, os.DirFS(filepath.Join(e.root, "config", "samples"))); err != nil {
		return "", err
	}
	if err := os.Mkdir(overlay, 0o700); err != nil {
		return "", err
	}
	var patches strings.Builder
	for i, m := range e.machines.Machines {
		fmt.Fprintf(&patches, "- target: {kind: Machine, name: m%d}\n  patch: '[{\"op\": \"replace\", \"path\": \"/spec/address\", \"value\": %q}]'\n", i+1, m.Address)
	}
	kustomization := fmt.Sprintf(`apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../samples]
patches:
%s- patch: |
    {apiVersion: v1, kind: Secret, metadata: {name: lab-ssh, namespace: metal}, stringData: {ssh-privatekey: %q}}
- patch: |
    {apiVersion: v1, kind: ConfigMap, metadata: {name: lab-known-hosts, namespace: metal}, data: {known_hosts: %q}}
`, patches.String(), e.machines.ClientKeyPEM(), e.machines.KnownHosts())
	return overlay, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600)
}

func (e *environment) printLogs() {
	for _, o := range e.operators {
		fmt.Fprintf(os.Stderr, "\nlast lines of %s:\n%s\n", o.name, proc.Tail(o.log))
	}
}

func (e *environment) printNext() {
	fmt.Printf(`
Everything is still up, until you press Ctrl-C. In another terminal:

  export KUBECONFIG=%s
  export BMDB_DATABASE_URL='%s'
  alias kubectl=%s
  kubectl -n metal get bmm,wclaim,bmp -o wide
  kubectl -n metal describe wclaim start-agents
  psql "$BMDB_DATABASE_URL" -c 'SELECT process, event, timestamp FROM work_history ORDER BY timestamp'
`, e.kubeconfig, e.databaseURL, e.plane.Kubectl())
}
