// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/go-logr/logr"
	"github.com/google/uuid"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/controllers"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
	"github.com/bmdb-dev/bmdb-operator/internal/drivers"
	"github.com/bmdb-dev/bmdb-operator/internal/process"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
	"github.com/bmdb-dev/bmdb-operator/internal/worker"
)

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	goleak.VerifyTestMain(runner{devtest.Main(m)}, goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"), goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"))
}

type runner struct{ tests devtest.Runner }

func (r runner) Run() int { return r.tests.Run() }

const cluster = "cluster-a"

// lab is a namespace, a database, and the reconcilers of one pod of one cluster. Its client reads from the API server itself, so that what a
// test wrote is seen; what the cache finds by an index is found by looking at all objects.
type lab struct {
	t         *testing.T
	database  string
	namespace string
	client    client.Client
	conn      *bmdb.Connection
	clock     *clocktesting.FakeClock
	events    *events.FakeRecorder
	workers   *workers
	shown     *shown
	writes    *writes
	objects   *controllers.Objects
	machines  reconcile.Reconciler
	claims    reconcile.Reconciler
	providers reconcile.Reconciler

	liveReads atomic.Int64 // of the API server itself

	patching func()                // before the next patch
	stale    []*v1alpha1.WorkClaim // what the cache shows instead of what is; nil: what is
}

// writes counts what is written to statuses.
type writes struct {
	mu   sync.Mutex
	n    int
	fail error
}

func (w *writes) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

type labOptions struct {
	cluster        string
	pod            string
	database       string // another lab's, for a second cluster or pod
	namespace      string
	namespaces     []string
	allowSimulated bool
	interval       time.Duration
	stagger        time.Duration
	unwitnessed    bool   // no objects were held against the database yet
	origin         string // of the API server that the reconcilers believe to speak to; empty: they do not ask
}

func newLab(t *testing.T, o labOptions) *lab {
	t.Helper()
	if o.cluster == "" {
		o.cluster = cluster
	}
	if o.namespace == "" {
		o.namespace = devtest.Namespace(t)
	}
	if o.database == "" {
		o.database = bmdbtest.NewURL(t)
	}
	if o.pod == "" {
		o.pod = "pod-1"
	}
	l := &lab{
		t: t, database: o.database, namespace: o.namespace, clock: clocktesting.NewFakeClock(time.Now()), events: events.NewFakeRecorder(100),
		workers: &workers{limits: map[string]int{}}, shown: &shown{}, writes: &writes{},
		conn: bmdbtest.Open(t, o.database, func(c *bmdb.Config) { c.Cluster, c.RuntimeInfo = o.cluster, o.pod }),
	}
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	direct, err := client.NewWithWatch(devtest.ControlPlane(t).RESTConfig(), client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	l.client = interceptor.NewClient(direct, interceptor.Funcs{
		List: l.list, Patch: l.patch,
		SubResourceApply: func(ctx context.Context, c client.Client, name string, config runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
			l.writes.mu.Lock()
			defer l.writes.mu.Unlock()
			l.writes.n++
			if l.writes.fail != nil {
				return l.writes.fail
			}
			return c.SubResource(name).Apply(ctx, config, opts...)
		},
	})
	config := controllers.Config{
		Cluster: o.cluster, Database: l.conn.Identity().ID, Pod: o.pod, Namespaces: o.namespaces, StatusInterval: o.interval, Stagger: o.stagger, Concurrency: 1,
	}
	kube := controllers.Kube{Client: l.client, Live: controllers.NewLive(&counted{direct, &l.liveReads}, o.origin), Events: l.events, Clock: l.clock}
	opener := drivers.NewOpener(l.client, direct, drivers.NewRegistry(ssh.AgentFiles(t.TempDir()), o.allowSimulated))
	l.objects = controllers.NewObjects(config, kube, l.conn)
	if !o.unwitnessed {
		l.objects.Trust(uuid.Nil)
	}
	l.machines = controllers.NewMachineReconciler(config, kube, l.conn, l.shown, l.objects)
	l.providers = controllers.NewProviderConfigReconciler(config, kube, l.conn, opener, l.shown, l.objects)
	l.claims = controllers.NewWorkClaimReconciler(config, kube, l.conn, l.workers, opener, process.Builtin(), l.shown, l.objects)
	return l
}

// counted counts what is read.
type counted struct {
	client.Reader
	reads *atomic.Int64
}

func (c *counted) Get(ctx context.Context, key client.ObjectKey, object client.Object, opts ...client.GetOption) error {
	c.reads.Add(1)
	return c.Reader.Get(ctx, key, object, opts...)
}

// listByIndex does what the cache's indexes do.
func listByIndex(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
	var all client.ListOptions
	all.ApplyOptions(opts)
	fields := all.FieldSelector
	all.FieldSelector = nil
	if err := c.List(ctx, list, &all); err != nil || fields == nil {
		return err
	}
	switch l := list.(type) {
	case *v1alpha1.WorkClaimList:
		key, _ := fields.RequiresExactMatch("effectiveKey")
		l.Items = slices.DeleteFunc(l.Items, func(o v1alpha1.WorkClaim) bool { return o.EffectiveKey() != key })
	case *v1alpha1.MachineList:
		id, _ := fields.RequiresExactMatch("status.machineID")
		l.Items = slices.DeleteFunc(l.Items, func(o v1alpha1.Machine) bool { return o.Status.MachineID != id })
	}
	return nil
}

// workers stands in for the engine.
type workers struct {
	mu        sync.Mutex
	owned     []string
	limits    map[string]int
	polls     int
	cancelled []string
}

func (w *workers) Owns(_, key string) (owns bool, wait worker.Wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.owned, key), worker.Wait{Limit: w.limits[key]}
}

func (w *workers) Holds(string, string) bool { return false }

func (w *workers) Wake(string, string) {}

func (w *workers) Poll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.polls++
}

func (w *workers) CancelClaim(_, key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cancelled = append(w.cancelled, key)
}

// shown records what was acknowledged.
type shown struct {
	mu  sync.Mutex
	all []bmdb.Pending
}

func (s *shown) Shown(p bmdb.Pending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, p)
}

func (s *shown) last() bmdb.Pending {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) == 0 {
		return bmdb.Pending{}
	}
	return s.all[len(s.all)-1]
}

func (l *lab) create(object client.Object) {
	l.t.Helper()
	object.SetNamespace(l.namespace)
	if err := l.client.Create(l.t.Context(), object); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) remove(object client.Object) {
	l.t.Helper()
	if err := l.client.Delete(l.t.Context(), object); err != nil {
		l.t.Fatal(err)
	}
}

func (l *lab) update(object client.Object, change func()) {
	l.t.Helper()
	l.read(object)
	change()
	if err := l.client.Update(l.t.Context(), object); err != nil {
		l.t.Fatal(err)
	}
}

// read reads an object anew and tells whether it is there.
func (l *lab) read(object client.Object) bool {
	l.t.Helper()
	err := l.client.Get(l.t.Context(), client.ObjectKeyFromObject(object), object)
	if err != nil && !apierrors.IsNotFound(err) {
		l.t.Fatal(err)
	}
	return err == nil
}

// reconcile reconciles an object once and reads it.
func (l *lab) reconcile(object client.Object) ctrl.Result {
	l.t.Helper()
	r := l.machines
	switch object.(type) {
	case *v1alpha1.WorkClaim:
		r = l.claims
	case *v1alpha1.ProviderConfig:
		r = l.providers
	}
	key := client.ObjectKeyFromObject(object)
	key.Namespace = l.namespace
	result, err := r.Reconcile(l.t.Context(), ctrl.Request{NamespacedName: key})
	if err != nil {
		l.t.Fatalf("reconcile %T %s: %v", object, key, err)
	}
	l.read(object)
	return result
}

// verify holds an object against its condition Ready and what kstatus makes of the whole.
func (l *lab) verify(object client.Object, ready metav1.ConditionStatus, reason v1alpha1.Reason, health status.Status) {
	l.t.Helper()
	var conditions []metav1.Condition
	switch o := object.(type) {
	case *v1alpha1.Machine:
		conditions = o.Status.Conditions
	case *v1alpha1.WorkClaim:
		conditions = o.Status.Conditions
	case *v1alpha1.ProviderConfig:
		conditions = o.Status.Conditions
	}
	c := meta.FindStatusCondition(conditions, "Ready")
	if c == nil {
		l.t.Errorf("%s has no condition Ready", object.GetName())
		return
	}
	if c.Status != ready || c.Reason != string(reason) {
		l.t.Errorf("%s is Ready=%s, %s: %s; want %s, %s", object.GetName(), c.Status, c.Reason, c.Message, ready, reason)
	}
	if got := l.health(object); got != health {
		l.t.Errorf("kstatus says that %s is %s, want %s", object.GetName(), got, health)
	}
}

func (l *lab) health(object client.Object) status.Status {
	l.t.Helper()
	gvk, err := l.client.GroupVersionKindFor(object)
	if err != nil {
		l.t.Fatal(err)
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	if err := l.client.Get(l.t.Context(), client.ObjectKeyFromObject(object), u); err != nil {
		l.t.Fatal(err)
	}
	result, err := status.Compute(u)
	if err != nil {
		l.t.Fatal(err)
	}
	return result.Status
}

// recorded returns the events so far.
func (l *lab) recorded() (out []string) {
	for {
		select {
		case e := <-l.events.Events:
			out = append(out, e)
		default:
			return out
		}
	}
}

// simulated makes a provider whose machines are worked on at once, and reconciles it.
func (l *lab) simulated(name string) *v1alpha1.ProviderConfig {
	l.t.Helper()
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Type, p.Spec.Simulated = v1alpha1.ProviderTypeSimulated, &v1alpha1.SimulatedProvider{}
	l.create(p)
	l.reconcile(p)
	return p
}

// machine makes a Machine, without reconciling it.
func (l *lab) machine(name, provider string) *v1alpha1.Machine {
	l.t.Helper()
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
	m.Spec.ProviderRef.Name, m.Spec.ProviderID = provider, name
	l.create(m)
	return m
}

// claim makes a WorkClaim, changed, without reconciling it.
func (l *lab) claim(name string, change func(c *v1alpha1.WorkClaim), machines ...string) *v1alpha1.WorkClaim {
	l.t.Helper()
	c := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
	c.Spec.Process, c.Spec.Mode, c.Spec.Machines.Names = v1alpha1.ProcessAgentStart, v1alpha1.WorkModeOnce, machines
	if change != nil {
		change(c)
	}
	l.create(c)
	return c
}

// session starts a session that ends with the test.
func (l *lab) session() *bmdb.Session {
	l.t.Helper()
	s, err := l.conn.StartSession(context.Background())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			l.t.Errorf("close session: %v", err)
		}
	})
	return s
}

// own takes up a claim as its owner.
func (l *lab) own(s *bmdb.Session, key string) *bmdb.OwnedClaim {
	l.t.Helper()
	owned, err := s.OwnClaims(l.t.Context(), 10)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, c := range owned {
		if c.Spec.Key == key {
			return c
		}
	}
	l.t.Fatalf("claim %s is not to be owned", key)
	return nil
}

// start starts work for a claim, as its owner. A round passes over machines that a chore of another pod has locked at that moment.
func (l *lab) start(s *bmdb.Session, c *bmdb.OwnedClaim) []*bmdb.Work {
	l.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for begun := time.Now(); ; <-tick.C {
		works, err := s.ClaimRound(l.t.Context(), c, 10)
		if err != nil && !errors.Is(err, bmdb.ErrNothingToDo) || time.Since(begun) > 10*time.Second {
			l.t.Fatalf("%d works: %v", len(works), err)
		}
		if len(works) > 0 {
			return works
		}
	}
}

// secret makes the Secret of an SSH provider.
func (l *lab) secret(name string, data map[string][]byte) *corev1.Secret {
	l.t.Helper()
	s := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: data}
	l.create(s)
	return s
}

// url is where another lab finds the same database.
func (l *lab) url() string { return l.database }

func request(object client.Object) ctrl.Request {
	return ctrl.Request{NamespacedName: client.ObjectKeyFromObject(object)}
}

var errDown = errors.New("the API server is down")

func names(n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("m%02d", i))
	}
	return out
}
