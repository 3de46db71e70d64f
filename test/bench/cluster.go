// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
)

// cluster is a control plane with a namespace, a database, and operators that serve the one from the other. It is for one goroutine, but for its
// client and database. The caller closes it.
type cluster struct {
	plane     *devenv.ControlPlane
	client    client.WithWatch
	http      *http.Client
	databases string // URL that operators are given
	db        *pgxpool.Pool
	dir       string
	programs  string
	operators []*operator
}

// clients is how many requests the benchmarks' own clients have under way at once: as many as the operator reconciles objects at once.
const clients = 16

// openCluster starts a control plane, and makes the namespace, which is the pool.
func (s *suite) openCluster(ctx context.Context, databaseURL string) (c *cluster, err error) {
	s.say("starting etcd, kube-apiserver and kube-controller-manager")
	c = &cluster{databases: databaseURL, programs: s.programs}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.close())
		}
	}()
	if c.programs, err = filepath.Abs(s.programs); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", "bmdb-bench-cluster-"); err != nil {
		return nil, err
	}
	if c.db, err = pgxpool.New(ctx, databaseURL); err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	if c.plane, err = devenv.Start(ctx, devenv.Options{}); err != nil {
		return nil, err
	}
	config := c.plane.RESTConfig()
	config.ContentType = "application/json"
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	if c.client, err = client.NewWithWatch(config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	if c.http, err = rest.HTTPClientFor(config); err != nil {
		return nil, err
	}
	if err := c.plane.Kubeconfig(c.kubeconfig()); err != nil {
		return nil, err
	}
	return c, c.client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: pool}})
}

func (c *cluster) kubeconfig() string { return filepath.Join(c.dir, "kubeconfig") }

func (c *cluster) close() error {
	var failed error
	for _, o := range c.operators {
		failed = errors.Join(failed, o.end(syscall.SIGKILL))
	}
	if c.plane != nil {
		failed = errors.Join(failed, c.plane.Stop())
	}
	if c.db != nil {
		c.db.Close()
	}
	if c.dir != "" {
		failed = errors.Join(failed, os.RemoveAll(c.dir))
	}
	return failed
}

// operator is a running bmdb-operator, as a pod would be.
type operator struct {
	name    string
	process *proc.Process
	log     string
}

// start starts an operator with its default flags, the given ones, and what a machine without pods needs, and waits until it is ready.
func (c *cluster) start(ctx context.Context, name string, flags ...string) (*operator, error) {
	const attempts = 3 // somebody may take a port meanwhile
	var err error
	for range attempts {
		var o *operator
		if o, err = c.launch(ctx, name, flags); err == nil {
			c.operators = append(c.operators, o)
			return o, nil
		}
	}
	return nil, fmt.Errorf("start operator %s: %w", name, err)
}

func (c *cluster) launch(ctx context.Context, name string, flags []string) (*operator, error) {
	var ports []string
	for range 2 {
		port, err := proc.FreePort()
		if err != nil {
			return nil, err
		}
		ports = append(ports, "127.0.0.1:"+strconv.Itoa(port))
	}
	o := &operator{name: name, log: filepath.Join(c.dir, name+".log")}
	args := append([]string{
		"run", "--pod-name", name, "--allow-simulated", "--agent-dir", c.programs,
		"--health-probe-bind-address", ports[0], "--metrics-bind-address", ports[1],
	}, flags...)
	var err error
	o.process, err = proc.Start(proc.Config{
		Path: filepath.Join(c.programs, "bmdb-operator"), Args: args, Log: o.log,
		Env: []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.dir, "KUBECONFIG=" + c.kubeconfig(), "BMDB_DATABASE_URL=" + c.databases},
	})
	if err != nil {
		return nil, err
	}
	const patience = 60 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err = o.process.WaitReady(ctx, func(ctx context.Context) error { return answers(ctx, "http://"+ports[0]+"/readyz") })
	if err != nil {
		return nil, errors.Join(err, o.end(syscall.SIGKILL))
	}
	return o, nil
}

func answers(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, response.Status)
	}
	return nil
}

// end sends a signal and waits for the end.
func (o *operator) end(signal syscall.Signal) error {
	const patience = 30 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return o.process.Stop(ctx, signal)
}

// provider makes the ProviderConfig of the simulated machines, whose work takes a time.
func (c *cluster) provider(ctx context.Context, latency time.Duration) error {
	milliseconds := int32(latency.Milliseconds())
	return c.client.Create(ctx, &v1alpha1.ProviderConfig{
		ObjectMeta: metav1.ObjectMeta{Name: lab, Namespace: pool},
		Spec:       v1alpha1.ProviderConfigSpec{Type: v1alpha1.ProviderTypeSimulated, Simulated: &v1alpha1.SimulatedProvider{LatencyMilliseconds: &milliseconds}},
	})
}

// makeMachines makes Machine objects, and waits until the database has them and nothing is left to show.
func (c *cluster) makeMachines(ctx context.Context, from, to int, within time.Duration) error {
	err := each(ctx, from, to, func(ctx context.Context, i int) error {
		name := fmt.Sprintf("sim-%06d", i)
		return c.client.Create(ctx, &v1alpha1.Machine{
			ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pool},
			Spec:       v1alpha1.MachineSpec{ProviderRef: v1alpha1.ProviderConfigReference{Name: lab}, ProviderID: name},
		})
	})
	if err != nil {
		return fmt.Errorf("make machines: %w", err)
	}
	return c.until(ctx, within, "all machines to be recorded and shown", func(ctx context.Context) error {
		var views, pending int
		err := c.db.QueryRow(ctx, `SELECT (SELECT count(*) FROM machine_views WHERE pool = $1 AND attached),
			(SELECT count(*) FROM machine_state WHERE rev <> spread_rev) + (SELECT count(*) FROM projection WHERE rev <> done_rev)`, pool).Scan(&views, &pending)
		if err != nil {
			return err
		}
		if views < to || pending > 0 {
			return fmt.Errorf("%d of %d machines are recorded, %d changes are to be shown", views, to, pending)
		}
		return nil
	})
}

// claim is a WorkClaim that starts agents.
func claim(name string, spec v1alpha1.WorkClaimSpec) *v1alpha1.WorkClaim {
	spec.Process = "AgentStart"
	spec.Machines = v1alpha1.MachineSelection{Selector: &v1alpha1.LabelSelector{}}
	return &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: pool}, Spec: spec}
}

// each calls do for all numbers of a range, several at once.
func each(ctx context.Context, from, to int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(clients)
	for i := from; i < to && ctx.Err() == nil; i++ {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}

// until polls until check succeeds.
func (c *cluster) until(ctx context.Context, within time.Duration, what string, check func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	last := errors.New("nothing was looked at")
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			last = err
		}
		for _, o := range c.operators {
			if e := o.process.Exit(); e != nil && !e.Success() && !strings.Contains(e.String(), "signal") {
				return fmt.Errorf("wait for %s: operator %s ended: %w", what, o.name, o.process.Err())
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: not within %s: %w", what, within, last)
		case <-ticker.C:
		}
	}
}

// requests asks the API server how many requests of each kind it has carried out, of all operators and clients, by what they do: "PUT machines/status".
func (c *cluster) requests(ctx context.Context) (map[string]int64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.plane.RESTConfig().Host+"/metrics", http.NoBody)
	if err != nil {
		return nil, err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("read the API server's metrics: %s", response.Status)
	}
	return readRequests(response.Body)
}

var requestLabels = regexp.MustCompile(`(code|resource|subresource|verb)="([^"]*)"`)

// readRequests adds up the requests in the API server's metrics that had a good end, but for watches.
func readRequests(metrics io.Reader) (map[string]int64, error) {
	sums := map[string]int64{}
	lines := bufio.NewScanner(metrics)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if !strings.HasPrefix(line, "apiserver_request_total{") {
			continue
		}
		labels := map[string]string{}
		for _, label := range requestLabels.FindAllStringSubmatch(line, -1) {
			labels[label[1]] = label[2]
		}
		if !strings.HasPrefix(labels["code"], "2") || labels["verb"] == "WATCH" {
			continue
		}
		n, err := strconv.ParseFloat(line[strings.LastIndexByte(line, ' ')+1:], 64)
		if err != nil {
			return nil, fmt.Errorf("read the API server's metrics: %w", err)
		}
		what := labels["verb"] + " " + labels["resource"]
		if labels["subresource"] != "" {
			what += "/" + labels["subresource"]
		}
		sums[what] += int64(n)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the API server's metrics: %w", err)
	}
	return sums, nil
}

// writesOf adds up the requests that write to a resource, as in workclaims/status; "": to any.
func writesOf(requests map[string]int64, resource string) (sum int64) {
	for what, n := range requests {
		verb, of, _ := strings.Cut(what, " ")
		if verb != "GET" && verb != "LIST" && (resource == "" || of == resource) {
			sum += n
		}
	}
	return sum
}

// statusWrites is how many writes of the status of a kind the API server has carried out.
func (c *cluster) statusWrites(ctx context.Context, resource string) (int64, error) {
	requests, err := c.requests(ctx)
	return writesOf(requests, resource+"/status"), err
}
