// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

const (
	kindsEvery   = 2 * time.Second  // between two looks for kinds that are missing
	kindsRemind  = time.Minute      // between two lines about them
	kindsTimeout = 10 * time.Second // of a look
)

// awaitKinds returns when the API server serves all kinds that the operator has, or ctx is done. Until then the process is alive and not ready, says
// what is missing and what to do, and touches nothing: what has no definition says nothing of machines.
func awaitKinds(ctx context.Context, health string, config *rest.Config, log logr.Logger) error {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return fmt.Errorf("ask which kinds the API server serves: %w", err)
	}
	missing, err := missingKinds(ctx, client.RESTClient())
	if err != nil || len(missing) == 0 {
		return err
	}
	stop, err := serveWaiting(ctx, health, log)
	if err != nil {
		return err
	}
	defer stop()
	for said := (time.Time{}); len(missing) > 0; {
		if time.Since(said) >= kindsRemind {
			log.Info("waits for CustomResourceDefinitions that are missing, and begins when they are there: kubectl apply --server-side -k config/crd",
				"missing", strings.Join(missing, ", "))
			said = time.Now()
		}
		t := time.NewTimer(kindsEvery/2 + rand.N(kindsEvery))
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		found, err := missingKinds(ctx, client.RESTClient())
		if err != nil {
			log.Info("cannot find out which kinds the API server serves; it is tried again", "error", err.Error())
			continue
		}
		missing = found
	}
	log.Info("all CustomResourceDefinitions are there")
	return nil
}

// missingKinds returns the names of the CustomResourceDefinitions that the API server does not serve.
func missingKinds(ctx context.Context, api rest.Interface) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, kindsTimeout)
	defer cancel()
	var served metav1.APIResourceList
	err := api.Get().AbsPath("/apis", v1alpha1.SchemeGroupVersion.Group, v1alpha1.SchemeGroupVersion.Version).Do(ctx).Into(&served)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, fmt.Errorf("ask which kinds the API server serves: %w", err)
	}
	var missing []string
	for _, plural := range []string{"machines", "providerconfigs", "workclaims"} {
		if !slices.ContainsFunc(served.APIResources, func(r metav1.APIResource) bool { return r.Name == plural }) {
			missing = append(missing, plural+"."+v1alpha1.SchemeGroupVersion.Group)
		}
	}
	return missing, nil
}

// serveWaiting answers probes at an address until stop is called: alive, and not ready. The manager does after that.
func serveWaiting(ctx context.Context, address string, log logr.Logger) (stop func(), err error) {
	if address == "" || address == "0" {
		return func() {}, nil
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen for probes: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "CustomResourceDefinitions are missing", http.StatusServiceUnavailable)
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: kindsTimeout}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error(err, "probes are not answered any more")
		}
	}()
	return func() {
		_ = server.Close()
		<-done
	}, nil
}
