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
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/sshmachine"
)

const lease = 3 * time.Second

// environment is everything that the demo starts, in the order of its start.
type environment struct {
	root, dir   string
	databaseURL string
	clusters    []*cluster
	machines    *sshmachine.Fleet
	stops       []func() error
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

// step is something to start.
type step struct {
	what string
	do   func(context.Context) error
}

func (e *environment) start(ctx context.Context, steps []step) error {
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

// databaseSteps are the first of all stories.
func (e *environment) databaseSteps() []step {
	return []step{
		{"a PostgreSQL server, with fsync on", e.startDatabase},
		{"bmdb-operator migrate: the schema of the Bare Metal Database", e.migrate},
	}
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
	_, err := output(ctx, e.environ(), e.bin("bmdb-operator"), "migrate")
	return err
}

// machinesStep starts machines with an sshd each.
func (e *environment) machinesStep(n int) step {
	return step{fmt.Sprintf("%d SSH machines", n), func(ctx context.Context) error {
		fleet, err := sshmachine.Start(ctx, n, sshmachine.Options{})
		if err != nil {
			return err
		}
		e.onStop(fleet.Stop)
		e.machines = fleet
		return nil
	}}
}

func (e *environment) bin(name string) string { return filepath.Join(e.root, "bin", name) }

func (e *environment) environ() []string {
	return []string{"PATH=" + os.Getenv("PATH"), "HOME=" + e.dir, "BMDB_DATABASE_URL=" + e.databaseURL}
}

// output runs a program in an environment and returns what it says, which is in the error if it fails.
func output(ctx context.Context, environ []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = environ
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
	return string(out), nil
}

// manifests writes config/samples to a directory, with the machines' real addresses, host keys and the client's private key. further are manifests
// of more than the samples, by the names of their files, and patches are more of kustomize's.
func (e *environment) manifests(further map[string]string, patches ...string) (string, error) {
	samples, overlay := filepath.Join(e.dir, "samples"), filepath.Join(e.dir, "overlay")
	if err := os.CopyFS(samples, os.DirFS(filepath.Join(e.root, "config", "samples"))); err != nil {
		return "", err
	}
	if err := os.Mkdir(overlay, 0o700); err != nil {
		return "", err
	}
	for i, m := range e.machines.Machines[:sampleMachines] {
		patches = append(patches, fmt.Sprintf("{kind: Machine, apiVersion: bmdb.dev/v1alpha1, metadata: {name: %s, namespace: metal}, spec: {address: %q}}", machineName(i), m.Address))
	}
	patches = append(patches,
		fmt.Sprintf("{apiVersion: v1, kind: Secret, metadata: {name: lab-ssh, namespace: metal}, stringData: {ssh-privatekey: %q}}", e.machines.ClientKeyPEM()),
		fmt.Sprintf("{apiVersion: v1, kind: ConfigMap, metadata: {name: lab-known-hosts, namespace: metal}, data: {known_hosts: %q}}", e.machines.KnownHosts()))
	resources := []string{"../samples"}
	for name, content := range further {
		if err := os.WriteFile(filepath.Join(overlay, name), []byte(content), 0o600); err != nil {
			return "", err
		}
		resources = append(resources, name)
	}
	kustomization := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + strings.Join(resources, ", ") + "]\npatches:\n"
	for _, patch := range patches {
		kustomization += "- patch: |\n    " + patch + "\n"
	}
	return overlay, os.WriteFile(filepath.Join(overlay, "kustomization.yaml"), []byte(kustomization), 0o600)
}

func (e *environment) printLogs() {
	for _, c := range e.clusters {
		for _, o := range c.operators {
			fmt.Fprintf(os.Stderr, "\nlast lines of %s:\n%s\n", o.name, proc.Tail(o.log))
		}
	}
}

func (e *environment) printNext() {
	left := e.clusters[len(e.clusters)-1]
	fmt.Printf(`
Everything is still up, until you press Ctrl-C. In another terminal:

  export KUBECONFIG=%s
  export BMDB_DATABASE_URL='%s'
  alias kubectl=%s
  kubectl -n metal get bmm,wclaim,bmp -o wide
  kubectl -n metal describe wclaim start-agents
  psql "$BMDB_DATABASE_URL" -c 'SELECT process, event, timestamp FROM work_history ORDER BY timestamp'
`, left.kubeconfig, e.databaseURL, left.plane.Kubectl())
}
