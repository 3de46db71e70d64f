// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package devenv runs a Kubernetes control plane for the demo and the tests: etcd, kube-apiserver and a
// kube-controller-manager with just what deletions need. There are no nodes. Its database server is in package postgres, its
// machines are in package sshmachine; both work without Kubernetes. Package devtest shares one of each among the tests of
// a process.
package devenv

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"k8s.io/client-go/rest"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/statedir"
)

const (
	statePrefix = "bmdb-controlplane"

	// startAttempts bounds how often another port is tried when somebody takes the chosen one in between.
	startAttempts = 5
	// startTimeout is generous: on a loaded machine with two cores an API server takes half a minute.
	startTimeout = 3 * time.Minute
	stopTimeout  = 30 * time.Second
)

// Options configures a control plane. The zero value starts the programs that `make controlplane` built, with this
// module's CRDs.
type Options struct {
	// BinDir has the programs. Empty means $BMDB_CONTROLPLANE_BIN, else bin/ of the module.
	BinDir string
	// CRDDirs are directories of CRDs to install. Nil means config/crd/bases of the module, empty means none.
	CRDDirs []string
	// APIServerFlags are further flags of kube-apiserver, without dashes. They win over the defaults.
	APIServerFlags map[string]string
	// Dir is where the state directory is made. Empty means the directory for temporary files.
	Dir string
}

// ControlPlane is a running control plane. Its methods are safe for concurrent use.
type ControlPlane struct {
	programs  programs
	options   Options
	state     *statedir.Dir
	authority *authority
	admin     *rest.Config
	etcdURL   string
	port      int

	mu                sync.Mutex
	etcd              *proc.Process
	apiserver         *proc.Process // nil when killed
	controllerManager *proc.Process
}

// Start starts a control plane and installs the CRDs. It returns when both can be used; the caller ends it with Stop. ctx
// bounds the start only. It fails with ErrNotBuilt when a program is missing.
func Start(ctx context.Context, options Options) (*ControlPlane, error) {
	root, err := ModuleRoot()
	if err != nil {
		return nil, err
	}
	found, err := findPrograms(root, options.BinDir)
	if err != nil {
		return nil, err
	}
	if options.CRDDirs == nil {
		options.CRDDirs = []string{filepath.Join(root, "config", "crd", "bases")}
	}
	state, err := statedir.New(options.Dir, statePrefix, nil)
	if err != nil {
		return nil, err
	}
	c := &ControlPlane{programs: found, options: options, state: state}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := c.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start control plane: %w", err), c.Stop())
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context) error {
	if err := c.writeCredentials(); err != nil {
		return err
	}
	if err := retryPorts(ctx, c.startEtcd); err != nil {
		return err
	}
	if err := retryPorts(ctx, c.startFirstAPIServer); err != nil {
		return err
	}
	if err := c.startControllerManager(); err != nil {
		return err
	}
	return c.InstallCRDs(ctx, c.options.CRDDirs...)
}

// retryPorts calls start until it succeeds; each call chooses its ports anew.
func retryPorts(ctx context.Context, start func(context.Context) error) error {
	var err error
	for range startAttempts {
		if err = start(ctx); err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
}

func (c *ControlPlane) startEtcd(ctx context.Context) error {
	client, err := proc.FreePort()
	if err != nil {
		return err
	}
	peer, err := proc.FreePort()
	if err != nil {
		return err
	}
	clientURL, peerURL := fmt.Sprintf("http://127.0.0.1:%d", client), fmt.Sprintf("http://127.0.0.1:%d", peer)
	data := c.state.Join("etcd")
	if err := os.RemoveAll(data); err != nil { // of an attempt before, with other ports
		return fmt.Errorf("clear etcd's data: %w", err)
	}
	process, err := c.run("etcd", c.programs.etcd, map[string]string{
		"name":                        "devenv",
		"data-dir":                    data,
		"listen-client-urls":          clientURL,
		"advertise-client-urls":       clientURL,
		"listen-peer-urls":            peerURL,
		"initial-advertise-peer-urls": peerURL,
		"initial-cluster":             "devenv=" + peerURL,
		// State here is worth nothing after the process; the flag makes writes 10 times as fast.
		"unsafe-no-fsync": "true",
		"log-level":       "warn",
	})
	if err != nil {
		return err
	}
	if err := process.WaitReady(ctx, func(ctx context.Context) error { return probe(ctx, clientURL+"/health") }); err != nil {
		return errors.Join(err, stop(process))
	}
	c.etcd, c.etcdURL = process, clientURL
	return nil
}

func (c *ControlPlane) startFirstAPIServer(ctx context.Context) error {
	port, err := proc.FreePort()
	if err != nil {
		return err
	}
	admin, err := c.configFor(port, "devenv-admin", "system:masters")
	if err != nil {
		return err
	}
	c.port, c.admin = port, admin
	return c.StartAPIServer(ctx)
}

// StartAPIServer starts an API server that was killed, at the same address, and returns when it is ready. It
// does nothing when it runs.
func (c *ControlPlane) StartAPIServer(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.apiserver != nil && c.apiserver.Err() == nil {
		return nil
	}
	flags := c.apiserverFlags()
	maps.Copy(flags, c.options.APIServerFlags)
	process, err := c.run("kube-apiserver", c.programs.apiserver, flags)
	if err != nil {
		return err
	}
	if err := process.WaitReady(ctx, c.apiserverReady); err != nil {
		return errors.Join(err, stop(process))
	}
	c.apiserver = process
	return nil
}

func (c *ControlPlane) apiserverFlags() map[string]string {
	return map[string]string{
		"bind-address":                     "127.0.0.1",
		"advertise-address":                "127.0.0.1",
		"endpoint-reconciler-type":         "none",
		"secure-port":                      fmt.Sprint(c.port),
		"etcd-servers":                     c.etcdURL,
		"authorization-mode":               "RBAC",
		"client-ca-file":                   c.state.Join("ca.crt"),
		"tls-cert-file":                    c.state.Join("apiserver.crt"),
		"tls-private-key-file":             c.state.Join("apiserver.key"),
		"service-account-issuer":           "https://kubernetes.default.svc",
		"service-account-signing-key-file": c.state.Join("service-account.key"),
		"service-account-key-file":         c.state.Join("service-account.pub"),
		"service-cluster-ip-range":         "10.0.0.0/24",
		// There is no controller that makes service accounts, so pods could not be created with it; nobody runs them anyway.
		"disable-admission-plugins": "ServiceAccount",
		"cert-dir":                  c.state.Join("apiserver-certs"),
	}
}

// KillAPIServer ends the API server as a crash does. StartAPIServer brings it back. There is no graceful stop: it would take
// the minute that the API server gives its watches.
func (c *ControlPlane) KillAPIServer() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	process := c.apiserver
	c.apiserver = nil
	if process == nil {
		return nil
	}
	return process.Stop(context.Background(), syscall.SIGKILL)
}

// Empty ends everything and starts anew with nothing, at the same address and with the same credentials: what a cluster is whose etcd was lost. The
// CRDs are installed again. Only the one who started the control plane may do this to it.
func (c *ControlPlane) Empty(ctx context.Context) error {
	if err := c.KillAPIServer(); err != nil {
		return err
	}
	c.mu.Lock()
	manager, etcd := c.controllerManager, c.etcd
	c.controllerManager, c.etcd = nil, nil
	c.mu.Unlock()
	for _, process := range []*proc.Process{manager, etcd} {
		if err := stop(process); err != nil {
			return err
		}
	}
	if err := retryPorts(ctx, c.startEtcd); err != nil {
		return err
	}
	if err := c.StartAPIServer(ctx); err != nil {
		return err
	}
	if err := c.startControllerManager(); err != nil {
		return err
	}
	return c.InstallCRDs(ctx, c.options.CRDDirs...)
}

// startControllerManager starts the controllers that finish deletions; a namespace and what an owner leaves behind would
// stay for ever without them. Nobody waits for it: it does its work once it is up.
func (c *ControlPlane) startControllerManager() error {
	config, err := c.UserConfig("system:kube-controller-manager", "system:masters")
	if err != nil {
		return err
	}
	kubeconfig := c.state.Join("kube-controller-manager.kubeconfig")
	if err := WriteKubeconfig(kubeconfig, config); err != nil {
		return err
	}
	process, err := c.run("kube-controller-manager", c.programs.controllerManager, map[string]string{
		"kubeconfig":   kubeconfig,
		"controllers":  "namespace-controller,garbage-collector-controller",
		"leader-elect": "false",
		"secure-port":  "0",
	})
	if err != nil {
		return err
	}
	c.controllerManager = process
	return nil
}

func (c *ControlPlane) run(name, program string, flags map[string]string) (*proc.Process, error) {
	var args []string
	for _, flag := range slices.Sorted(maps.Keys(flags)) {
		args = append(args, "--"+flag+"="+flags[flag])
	}
	return proc.Start(proc.Config{Path: program, Args: args, Dir: c.state.Path, Log: c.LogFile(name)})
}

// LogFile is the log of etcd, kube-apiserver or kube-controller-manager, gone after Stop.
func (c *ControlPlane) LogFile(name string) string { return c.state.Join(name + ".log") }

// Kubectl is the path of the kubectl that was built with the control plane.
func (c *ControlPlane) Kubectl() string { return c.programs.kubectl }

// Stop ends everything and removes the state. The control plane cannot be used afterwards; a second call does nothing.
func (c *ControlPlane) Stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var errs []error
	// Nothing here is worth a graceful end, and the API server takes its time for one.
	for _, process := range []*proc.Process{c.controllerManager, c.apiserver, c.etcd} {
		if process != nil {
			errs = append(errs, stop(process))
		}
	}
	c.controllerManager, c.apiserver, c.etcd = nil, nil, nil
	c.closeIdleConnections()
	return errors.Join(append(errs, c.state.Remove())...)
}

func stop(process *proc.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	return process.Stop(ctx, syscall.SIGKILL)
}
