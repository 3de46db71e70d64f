// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"bytes"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/rest"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
)

// apiProxy stands between operators and their API server. As long as it is bad, it answers some writes with a conflict, loses the answers of
// others, answers some with a timeout, and holds up what watches say, so that caches are stale.
type apiProxy struct {
	rig    *rig
	server *http.Server

	mu     sync.Mutex
	random *rand.Rand
	bad    bool
}

// staleMost bounds for how long a watch is held up.
const staleMost = 2 * time.Second

// newAPIProxy puts a proxy before the API server of all pods.
func (r *rig) newAPIProxy() *apiProxy {
	r.T.Helper()
	config, err := deployment.OperatorConfig(r.T.Context(), r.Plane)
	if err != nil {
		r.T.Fatal(err)
	}
	target, err := url.Parse(config.Host)
	if err != nil {
		r.T.Fatal(err)
	}
	// The proxy is who the pods are: clients send no token over a connection that is not encrypted.
	transport, err := rest.TransportFor(config)
	if err != nil {
		r.T.Fatal(err)
	}
	a := &apiProxy{rig: r, random: rand.New(rand.NewPCG(run.seed, 6))}
	reverse := &httputil.ReverseProxy{
		Rewrite:       func(p *httputil.ProxyRequest) { p.SetURL(target) },
		Transport:     transport,
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0), // what breaks is to break
		ErrorHandler:  func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(http.StatusBadGateway) },
		ModifyResponse: func(response *http.Response) error {
			if response.Request.URL.Query().Get("watch") != "" {
				response.Body = &staleBody{ReadCloser: response.Body, proxy: a}
			}
			return nil
		},
	}
	listener, err := (&net.ListenConfig{}).Listen(r.T.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.T.Fatal(err)
	}
	a.server = &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) { a.serve(w, request, reverse) }),
		ReadHeaderTimeout: time.Minute,
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = a.server.Serve(listener) // it ends by Close
	}()
	r.T.Cleanup(func() {
		if err := a.server.Close(); err != nil { // pods still talk to it
			r.T.Error(err)
		}
		<-served
	})
	config.Host, config.CAData, config.BearerToken = "http://"+listener.Addr().String(), nil, ""
	path := filepath.Join(r.Dir, "kubeconfig-proxied")
	if err := devenv.WriteKubeconfig(path, config); err != nil {
		r.T.Fatal(err)
	}
	for _, p := range r.pods {
		p.Env = append(p.Env, "KUBECONFIG="+path)
	}
	return a
}

// turn makes it bad, or good.
func (a *apiProxy) turn(bad bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.bad = bad
}

func (a *apiProxy) roll(sides int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.bad {
		return -1
	}
	return a.random.IntN(sides)
}

func (a *apiProxy) serve(w http.ResponseWriter, request *http.Request, reverse http.Handler) {
	ours := strings.HasPrefix(request.URL.Path, "/apis/bmdb.dev/")
	if !ours || request.Method == http.MethodGet {
		reverse.ServeHTTP(w, request)
		return
	}
	const sides = 20
	switch a.roll(sides) {
	case 0, 1:
		a.rig.struck("writes answered with a conflict")
		answer(w, http.StatusConflict, "Conflict")
	case 2:
		a.rig.struck("writes answered with a timeout")
		answer(w, http.StatusGatewayTimeout, "Timeout")
	case 3:
		a.rig.struck("writes whose answer was lost")
		reverse.ServeHTTP(httptest.NewRecorder(), request)
		answer(w, http.StatusGatewayTimeout, "Timeout")
	default:
		reverse.ServeHTTP(w, request)
	}
}

// answer refuses as an API server does.
func answer(w http.ResponseWriter, code int, reason string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	text := `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"injected","reason":"` + reason + `"}`
	_, _ = io.Copy(w, bytes.NewBufferString(text)) // nobody is there any more if it fails
}

// staleBody is what a watch says, later.
type staleBody struct {
	io.ReadCloser
	proxy *apiProxy
}

func (s *staleBody) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if roll := s.proxy.roll(4); roll == 0 && n > 0 {
		s.proxy.rig.struck("watches held up")
		s.proxy.rig.during(time.Duration(rand.Int64N(int64(staleMost))))
	}
	return n, err
}
