// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/metrics"
)

// statusWrites are requests of replicas that apply a status to a WorkClaim, by claim. It is safe for concurrent use.
type statusWrites struct {
	mu     sync.Mutex
	claims map[string][]statusWrite
	last   time.Time
}

type statusWrite struct {
	began   time.Time
	written bool // else refused
	end     bool // it says that the claim is over
}

// recording is a transport that records them.
type recording struct {
	to   http.RoundTripper
	into *statusWrites
}

// RoundTrip implements http.RoundTripper.
func (c recording) RoundTrip(r *http.Request) (*http.Response, error) {
	path := strings.Split(r.URL.Path, "/")
	n := len(path)
	if r.Method != http.MethodPatch || n < 3 || path[n-3] != "workclaims" || path[n-1] != "status" {
		return c.to.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	var claim v1alpha1.WorkClaim
	if err := json.Unmarshal(body, &claim); err != nil {
		return nil, err
	}
	sent := r.Clone(r.Context())
	sent.Body = io.NopCloser(bytes.NewReader(body))
	began := time.Now()
	answer, err := c.to.RoundTrip(sent)
	c.into.mu.Lock()
	defer c.into.mu.Unlock()
	c.into.last = time.Now()
	c.into.claims[path[n-2]] = append(c.into.claims[path[n-2]], statusWrite{began, err == nil && answer.StatusCode == http.StatusOK, over(&claim)})
	return answer, err
}

func over(c *v1alpha1.WorkClaim) bool {
	return meta.IsStatusConditionTrue(c.Status.Conditions, string(v1alpha1.ConditionFinished))
}

// replica runs an operator until the test ends.
func replica(t *testing.T, c Config, kube *rest.Config) {
	t.Helper()
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	observer, err := metrics.New(prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := c.open(slog.New(slog.DiscardHandler), observer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if err := conn.RegisterCluster(t.Context(), c.ClusterID); err != nil {
		t.Fatal(err)
	}
	m, err := manager.New(kube, manager.Options{
		Scheme: scheme, Cache: cache.Options{DefaultNamespaces: map[string]cache.Config{c.Namespaces[0]: {}}}, Logger: logr.Discard(),
		Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)}, // others of the same name run in this process
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := assemble(t.Context(), &c, m, conn, observer, logr.Discard()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- m.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s ended with %v", c.PodName, err)
		}
	})
}

// ways are how claims come to an end.
var ways = []struct {
	name             string
	latency, failure int32
	mode             v1alpha1.WorkMode
}{
	{"at-once", 0, 0, v1alpha1.WorkModeOnce},
	{"complete", 1000, 0, v1alpha1.WorkModeOnce},
	{"drained", 1000, 0, v1alpha1.WorkModeDrain},
	{"failed", 1000, 100, v1alpha1.WorkModeOnce},
	{"failed-at-once", 0, 100, v1alpha1.WorkModeOnce},
}

// TestStatusWritesOfReplicas: three replicas write the end of a claim once, however it comes to its end, and whatever goes before once in an
// interval: the first status and the last, of one whose work ends within the interval. It follows the test of run in the order of files: run
// sets the logger of the process, which client-go's goroutines read that outlive a manager.
func TestStatusWritesOfReplicas(t *testing.T) {
	const each, interval = 4, 5 * time.Second
	plane, namespace, database := devtest.ControlPlane(t), devtest.Namespace(t), bmdbtest.NewURL(t)
	scheme, err := newScheme()
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.New(plane.RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	writes := &statusWrites{claims: map[string][]statusWrite{}}
	for i := range 3 {
		kube := rest.CopyConfig(plane.RESTConfig())
		kube.QPS = -1
		kube.Wrap(func(to http.RoundTripper) http.RoundTripper { return recording{to, writes} })
		replica(t, Config{
			DatabaseURL: database, ClusterID: "cluster-a", PodName: fmt.Sprintf("pod-%d", i), Namespaces: []string{namespace}, Lease: 10 * time.Second,
			WorkConcurrency: 64, WorkGrace: time.Second, StatusInterval: interval, ResyncInterval: time.Hour, AllowSimulated: true,
			AgentDir: t.TempDir(), Reconciles: 4, DatabaseConnections: 8,
		}, kube)
	}
	endClaims(t, c, namespace, each, writes)
	writes.mu.Lock()
	defer writes.mu.Unlock()
	for _, way := range ways {
		written, attempted, attemptedEnds := 0, 0, 0
		for i := range each {
			ends, before := 0, time.Time{}
			name := fmt.Sprintf("%s-%d", way.name, i)
			for _, w := range writes.claims[name] {
				attempted++
				if w.end {
					attemptedEnds++
				}
				if !w.written {
					continue
				}
				written++
				if w.end {
					ends++
				} else if apart := w.began.Sub(before); apart < interval {
					t.Errorf("%s was written %s after the last time, before its end", name, apart)
				} else {
					before = w.began
				}
			}
			if ends != 1 {
				t.Errorf("the end of %s was written %d times", name, ends)
			}
		}
		t.Logf("%-14s: %.2f written of %.2f attempted per claim, %.2f attempted of the end", way.name, float64(written)/each, float64(attempted)/each, float64(attemptedEnds)/each)
	}
}

// endClaims makes claims that come to their end in all ways, so many in each, and waits until they have, and nobody writes any more.
func endClaims(t *testing.T, c client.Client, namespace string, each int, writes *statusWrites) {
	t.Helper()
	create := func(o client.Object) {
		t.Helper()
		o.SetNamespace(namespace)
		if err := c.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	for _, way := range ways {
		p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: way.name}}
		p.Spec.Type, p.Spec.Simulated = v1alpha1.ProviderTypeSimulated, &v1alpha1.SimulatedProvider{LatencyMilliseconds: &way.latency, FailurePercent: &way.failure}
		create(p)
		for i := range each {
			m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", way.name, i)}}
			m.Spec.ProviderRef.Name, m.Spec.ProviderID = way.name, m.Name
			create(m)
		}
	}
	eventually(t, "all machines are recorded", func() error {
		var list v1alpha1.MachineList
		if err := c.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		for i := range list.Items {
			if list.Items[i].Status.MachineID == "" {
				return errors.New(list.Items[i].Name + " is not")
			}
		}
		return nil
	})
	for _, way := range ways {
		for i := range each {
			claim := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s-%d", way.name, i)}}
			claim.Spec.Process, claim.Spec.Mode, claim.Spec.Machines.Names = v1alpha1.ProcessAgentStart, way.mode, []string{claim.Name}
			claim.Spec.MaxAttempts = 1
			create(claim)
		}
	}
	const quiet = 3 * time.Second
	eventually(t, "all claims are over, and nobody has written for a while", func() error {
		var list v1alpha1.WorkClaimList
		if err := c.List(t.Context(), &list, client.InNamespace(namespace)); err != nil {
			return err
		}
		for i := range list.Items {
			if !over(&list.Items[i]) {
				return errors.New(list.Items[i].Name + " is not")
			}
			if finalizers := list.Items[i].Finalizers; len(finalizers) > 0 {
				return fmt.Errorf("%s has finalizers %v", list.Items[i].Name, finalizers)
			}
		}
		writes.mu.Lock()
		defer writes.mu.Unlock()
		if since := time.Since(writes.last); since < quiet {
			return fmt.Errorf("the last write was %s ago", since)
		}
		return nil
	})
}
