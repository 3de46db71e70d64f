// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"syscall"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
)

// cluster is a control plane with operators.
type cluster struct {
	env        *environment
	name       string // what --cluster-id says; empty: nothing
	plane      *devenv.ControlPlane
	kubeconfig string
	operators  []*operator
}

// operator is one operator process, as a pod would be.
type operator struct {
	name    string
	process *proc.Process
	log     string
}

// newCluster returns a cluster that is not started.
func (e *environment) newCluster(name string) *cluster {
	c := &cluster{env: e, name: name, kubeconfig: filepath.Join(e.dir, "kubeconfig"+name)}
	e.clusters = append(e.clusters, c)
	return c
}

func (c *cluster) startControlPlane(ctx context.Context) error {
	plane, err := devenv.Start(ctx, devenv.Options{})
	if err != nil {
		return err
	}
	c.env.onStop(plane.Stop)
	c.plane = plane
	return plane.Kubeconfig(c.kubeconfig)
}

func (c *cluster) startOperators(ctx context.Context, names []string, flags ...string) error {
	for _, name := range names {
		if err := c.startOperator(ctx, name, flags); err != nil {
			return err
		}
	}
	return nil
}

func (c *cluster) startOperator(ctx context.Context, name string, flags []string) error {
	port, err := proc.FreePort()
	if err != nil {
		return err
	}
	o := &operator{name: name, log: filepath.Join(c.env.dir, name+".log")}
	health := fmt.Sprintf("127.0.0.1:%d", port)
	o.process, err = proc.Start(proc.Config{
		Path: c.env.bin("bmdb-operator"), Log: o.log, Env: c.environ(),
		Args: append([]string{
			"run", "--pod-name", name, "--lease", lease.String(), "--status-interval", "1s", "--agent-dir", filepath.Join(c.env.root, "bin"),
			"--health-probe-bind-address", health, "--metrics-bind-address", "0",
		}, flags...),
	})
	if err != nil {
		return err
	}
	c.operators = append(c.operators, o)
	c.env.onStop(func() error {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		return o.process.Stop(ctx, syscall.SIGTERM)
	})
	return o.process.WaitReady(ctx, func(ctx context.Context) error { return ready(ctx, "http://"+health+"/readyz") })
}

// kill ends an operator as a crash of its node does.
func (o *operator) kill() error {
	if err := o.process.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-o.process.Done()
	return nil
}

// destroy ends a cluster as the loss of its site does: nobody says goodbye.
func (c *cluster) destroy() error {
	var errs []error
	for _, o := range c.operators { // at once: the one that works must not get further
		errs = append(errs, o.process.Signal(syscall.SIGKILL))
	}
	for _, o := range c.operators {
		<-o.process.Done()
	}
	return errors.Join(append(errs, c.plane.Stop())...)
}

func (c *cluster) environ() []string { return append(c.env.environ(), "KUBECONFIG="+c.kubeconfig) }

func (c *cluster) kubectl(ctx context.Context, args ...string) (string, error) {
	return output(ctx, c.environ(), c.plane.Kubectl(), args...)
}
