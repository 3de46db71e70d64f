// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	ctrlmetrics "sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/metrics/filters"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/drivers"
	"github.com/bmdb-dev/bmdb-operator/internal/metrics"
	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
	"github.com/bmdb-dev/bmdb-operator/internal/roles"
	"github.com/bmdb-dev/bmdb-operator/internal/session"
	"github.com/bmdb-dev/bmdb-operator/internal/watch"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

// run runs the operator until ctx is done. All that is logged in the process goes to out from then on. An error that is in the log already is
// a reportedError.
func run(ctx context.Context, c Config, out io.Writer) error {
	if err := c.complete(); err != nil {
		return err
	}
	slogger, err := c.logger(out)
	if err != nil {
		return err
	}
	log := logr.FromSlogHandler(slogger.Handler())
	logAll(slogger)
	switch err := operate(ctx, c, slogger, log); {
	case err != nil && asTold(ctx, err):
		log.Info("ended as it was told to", "while", err.Error())
	case err != nil:
		log.Error(err, "the operator ends")
		return reportedError{err}
	}
	return nil
}

// asTold tells an error that only says that the process was told to end, while it still asked the API server or the database who they are.
func asTold(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, context.Canceled)
}

// operate is run, with a log.
func operate(ctx context.Context, c Config, slogger *slog.Logger, log logr.Logger) error {
	config, err := c.restConfig()
	if err != nil {
		return err
	}
	scheme, err := newScheme()
	if err != nil {
		return err
	}
	if err := findOrigin(ctx, &c, config, scheme, log); err != nil {
		return err
	}
	if err := awaitKinds(ctx, c.HealthAddress, config, log); err != nil || ctx.Err() != nil {
		return err
	}
	observer, err := metrics.New(ctrlmetrics.Registry)
	if err != nil {
		return err
	}
	conn, err := c.open(slogger, observer)
	if err != nil {
		return err
	}
	defer conn.Close()
	// Before anything is listed, so that no change falls in between.
	if err := conn.RegisterCluster(ctx, c.ClusterID); err != nil {
		return err
	}
	m, err := c.newManager(config, scheme)
	if err != nil {
		return err
	}
	if err := assemble(ctx, &c, m, conn, observer, log); err != nil {
		return err
	}
	log.Info("starting", "version", version, "cluster", c.ClusterID, "database", conn.Identity().ID, "pod", c.PodName)
	return m.Start(ctx)
}

// stagger is for how long replicas draw apart.
const stagger = 200 * time.Millisecond

// assemble puts the parts of the operator together.
func assemble(ctx context.Context, c *Config, m manager.Manager, conn *bmdb.Connection, observer *metrics.Metrics, log logr.Logger) error {
	database := conn.Identity().ID
	config := controllers.Config{
		Cluster: c.ClusterID, Database: database, Pod: c.PodName, Namespaces: c.Namespaces, StatusInterval: c.StatusInterval, Concurrency: c.Reconciles,
		Stagger: stagger,
	}
	kube := controllers.Kube{Client: m.GetClient(), Live: controllers.NewLive(m.GetAPIReader(), c.origin), Events: m.GetEventRecorder("bmdb-operator"), Clock: clock.RealClock{}}
	opener := drivers.NewOpener(m.GetClient(), m.GetAPIReader(), drivers.NewRegistry(ssh.AgentFiles(c.AgentDir), c.AllowSimulated))
	processes := process.Builtin()
	objects := controllers.NewObjects(config, kube, conn)
	engine := worker.New(worker.Config{Concurrency: c.WorkConcurrency, Grace: c.WorkGrace, Lease: c.Lease, Database: database},
		processes, conn, opener, objects, observer, log.WithName("worker"))
	keeper := session.New(conn, witnessed{objects, engine, min(witnessEvery, c.Lease), log.WithName("session")}, log.WithName("session"))
	watcher := watch.New(conn, c.ClusterID, sink{objects, engine}, log.WithName("watch"))
	if err := controllers.AddIndexes(ctx, m); err != nil {
		return err
	}
	for _, r := range []interface{ SetupWithManager(m manager.Manager) error }{
		controllers.NewMachineReconciler(config, kube, conn, watcher, objects),
		controllers.NewProviderConfigReconciler(config, kube, conn, opener, watcher, objects),
		controllers.NewWorkClaimReconciler(config, kube, conn, engine, opener, processes, watcher, objects),
	} {
		if err := r.SetupWithManager(m); err != nil {
			return fmt.Errorf("set up controller: %w", err)
		}
	}
	successor := roles.New(conn, roles.Config{Cluster: c.ClusterID, Pod: c.PodName, Namespaces: c.Namespaces, Silence: c.ManagerTakeoverAfter}, log.WithName("roles"))
	resync := controllers.NewResync(objects, conn, c.ResyncInterval, log.WithName("resync"))
	origin := controllers.NewOriginWatch(m.GetAPIReader(), c.origin, log.WithName("origin"))
	reader := metrics.NewReader(observer, metrics.Sources{
		Database: conn, Session: keeper.Current, Claims: m.GetClient(), Backlog: watcher.Backlog,
	}, log.WithName("metrics"))
	for _, r := range []manager.Runnable{keeper, watcher, successor, resync, origin, reader} {
		if err := m.Add(r); err != nil {
			return fmt.Errorf("add to manager: %w", err)
		}
	}
	if err := m.AddReadyzCheck("session", keeper.Check); err != nil {
		return fmt.Errorf("add readiness check: %w", err)
	}
	return nil
}

// witnessEvery is how often, at least, the newest objects are held against the database while a session lives.
const witnessEvery = time.Minute

// witnessed lets nothing start under a session before all objects were held against the database, and goes on holding the newest of them against it.
type witnessed struct {
	objects *controllers.Objects
	engine  *worker.Engine
	every   time.Duration
	log     logr.Logger
}

// Serve implements session.Server.
func (w witnessed) Serve(ctx context.Context, s *bmdb.Session) {
	for ctx.Err() == nil {
		err := w.objects.Witness(ctx)
		if err == nil {
			w.objects.Trust(s.UUID)
			var witnesses sync.WaitGroup
			witnesses.Go(func() { w.objects.KeepWitnessing(ctx, w.every) })
			w.engine.Serve(ctx, s) // until ctx is done
			witnesses.Wait()
			return
		}
		if ctx.Err() == nil {
			w.log.Info("cannot compare objects with the database, and starts nothing until then", "error", err.Error())
		}
		pause := time.NewTimer(time.Second)
		select {
		case <-ctx.Done():
		case <-pause.C:
		}
		pause.Stop()
	}
}

// sink shows changes, and lets claims look again at machines that have changed.
type sink struct {
	objects *controllers.Objects
	engine  *worker.Engine
}

// Changed implements watch.Sink.
func (s sink) Changed(ctx context.Context, p bmdb.Pending) (bool, error) {
	s.Known(p)
	return s.objects.Changed(ctx, p)
}

// Known implements watch.Sink. Claims look at what has changed whoever has shown it.
func (s sink) Known(p bmdb.Pending) {
	if p.Kind != bmdb.KindClaim {
		s.engine.WakePool(p.Pool)
	}
}

// Everything implements watch.Sink.
func (s sink) Everything(ctx context.Context) error { return s.objects.Everything(ctx) }

func (c *Config) open(log *slog.Logger, observer bmdb.Observer) (*bmdb.Connection, error) {
	db := bmdb.BMDB{Config: bmdb.Config{
		DatabaseURL: c.DatabaseURL, ComponentName: "bmdb-operator", RuntimeInfo: c.PodName, Cluster: c.ClusterID, Origin: c.origin, ClaimsOnly: true, Pools: c.Namespaces, Lease: c.Lease,
		MaxConnections: c.DatabaseConnections, Logger: log, Observer: observer,
	}}
	return db.Open(false)
}

func (c *Config) restConfig() (*rest.Config, error) {
	if c.Kubeconfig == "" {
		if config, err := rest.InClusterConfig(); err == nil {
			config.QPS = -1
			return config, nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.Kubeconfig
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("find the way to the API server: %w", err)
	}
	// The API server's own fairness is limit enough.
	config.QPS = -1
	return config, nil
}

func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build scheme: %w", err)
		}
	}
	return scheme, nil
}

// findOrigin finds out which API server this is, which is the cluster's ID where none is given. Where one is given the right to ask may be
// missing; then it is empty.
func findOrigin(ctx context.Context, c *Config, config *rest.Config, scheme *runtime.Scheme, log logr.Logger) error {
	reader, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("find this cluster's ID: %w", err)
	}
	c.origin, err = controllers.OriginOf(ctx, reader)
	switch {
	case err == nil:
	case c.ClusterID == "":
		return fmt.Errorf("find this cluster's ID, which --cluster-id can name: %w", err)
	case apierrors.IsForbidden(err):
		log.Info("cannot tell this API server from others, so that an empty one with the same --cluster-id ends views", "error", err.Error())
	default:
		return fmt.Errorf("find out which API server this is: %w", err)
	}
	if c.ClusterID == "" {
		c.ClusterID = c.origin
	}
	return nil
}

func (c *Config) newManager(config *rest.Config, scheme *runtime.Scheme) (manager.Manager, error) {
	namespaces := map[string]cache.Config{}
	for _, n := range c.Namespaces {
		namespaces[n] = cache.Config{}
	}
	// Time for works to stop, and for the session to close.
	grace := c.WorkGrace + sessionGrace
	m, err := manager.New(config, manager.Options{
		Scheme:                  scheme,
		Cache:                   cache.Options{DefaultNamespaces: namespaces},
		Metrics:                 c.metricsOptions(),
		HealthProbeBindAddress:  c.HealthAddress,
		GracefulShutdownTimeout: &grace,
	})
	if err != nil {
		return nil, fmt.Errorf("make manager: %w", err)
	}
	if err := m.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return nil, fmt.Errorf("add health check: %w", err)
	}
	return m, nil
}

// +kubebuilder:rbac:groups=authentication.k8s.io,resources=tokenreviews,verbs=create
// +kubebuilder:rbac:groups=authorization.k8s.io,resources=subjectaccessreviews,verbs=create

// metricsOptions say how metrics are served. In a cluster the API server says to whom.
func (c *Config) metricsOptions() metricsserver.Options {
	options := metricsserver.Options{BindAddress: c.MetricsAddress}
	if c.MetricsSecure {
		options.SecureServing, options.FilterProvider = true, filters.WithAuthenticationAndAuthorization
		options.CertDir, options.CertName, options.KeyName = c.MetricsCertDir, certificateFile, keyFile
	}
	return options
}
