// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"golang.org/x/crypto/ssh"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

// lab is a deployed operator and a pool that it may serve.
type lab struct {
	t         *testing.T
	plane     *devenv.ControlPlane
	client    client.Client
	namespace string
	database  *database
	pod       *pod
}

// newLab deploys an operator, with further environment, whose pool is a fresh namespace.
func newLab(t *testing.T, env ...string) *lab {
	t.Helper()
	plane, c := newPlane(t)
	l := &lab{t: t, plane: plane, client: c, namespace: devtest.Namespace(t), database: newDatabase(t)}
	if err := deployment.Install(t.Context(), plane, l.namespace); err != nil {
		t.Fatal(err)
	}
	l.pod = newPod(t, plane, c, l.database, append([]string{"BMDB_ALLOW_SIMULATED=true", "BMDB_STATUS_INTERVAL=1s"}, env...)...)
	return l
}

func (l *lab) create(object client.Object) {
	l.t.Helper()
	if object.GetNamespace() == "" {
		object.SetNamespace(l.namespace)
	}
	if err := l.client.Create(l.t.Context(), object); err != nil {
		l.t.Fatal(err)
	}
}

// provider makes a provider of simulated machines.
func (l *lab) provider(name string, change func(*v1alpha1.SimulatedProvider)) *v1alpha1.ProviderConfig {
	l.t.Helper()
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: name}}
	p.Spec.Type, p.Spec.Simulated = v1alpha1.ProviderTypeSimulated, &v1alpha1.SimulatedProvider{}
	if change != nil {
		change(p.Spec.Simulated)
	}
	l.create(p)
	return p
}

// ssh makes a provider of machines that are reached by SSH, in a namespace.
func (l *lab) ssh(namespace string) *v1alpha1.ProviderConfig {
	l.t.Helper()
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: "ssh", Namespace: namespace}}
	p.Spec.Type, p.Spec.SSH = v1alpha1.ProviderTypeSSH, v1alpha1.SSHProvider{
		User: "root", PrivateKeySecretRef: v1alpha1.SecretKeyReference{Name: "ssh", Key: "ssh-privatekey"},
		HostKeys: v1alpha1.SSHHostKeys{Policy: v1alpha1.HostKeyPolicyTrustOnFirstUse},
	}
	l.create(p)
	return p
}

// sshKey makes the Secret of ssh.
func (l *lab) sshKey(namespace string) {
	l.t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		l.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		l.t.Fatal(err)
	}
	l.create(&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "ssh", Namespace: namespace}, Data: map[string][]byte{"ssh-privatekey": pem.EncodeToMemory(block)}})
}

// machine makes a machine of a provider.
func (l *lab) machine(name, provider string) *v1alpha1.Machine {
	l.t.Helper()
	m := &v1alpha1.Machine{ObjectMeta: metav1.ObjectMeta{Name: name}}
	m.Spec.ProviderRef.Name, m.Spec.ProviderID = provider, name
	l.create(m)
	return m
}

// claim makes a claim for named machines.
func (l *lab) claim(name string, change func(*v1alpha1.WorkClaim), machines ...string) *v1alpha1.WorkClaim {
	l.t.Helper()
	c := &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{Name: name}}
	c.Spec.Process, c.Spec.Mode, c.Spec.Machines.Names = v1alpha1.ProcessAgentStart, v1alpha1.WorkModeOnce, machines
	if change != nil {
		change(c)
	}
	l.create(c)
	return c
}

// await waits until an object's condition Ready has a reason for the latest spec, and reads the object.
func (l *lab) await(object client.Object, want v1alpha1.Reason) {
	l.t.Helper()
	eventually(l.t, fmt.Sprintf("%T %s says %s", object, object.GetName(), want), func(ctx context.Context) error {
		if err := l.client.Get(ctx, client.ObjectKeyFromObject(object), object); err != nil {
			return err
		}
		ready := meta.FindStatusCondition(conditionsOf(object), string(v1alpha1.ConditionReady))
		switch {
		case ready == nil:
			return errors.New("it says nothing")
		case ready.Reason != string(want) || ready.ObservedGeneration != object.GetGeneration():
			return fmt.Errorf("it says %s of generation %d: %s", ready.Reason, ready.ObservedGeneration, ready.Message)
		}
		return nil
	})
}

func conditionsOf(object client.Object) []metav1.Condition {
	switch o := object.(type) {
	case *v1alpha1.Machine:
		return o.Status.Conditions
	case *v1alpha1.WorkClaim:
		return o.Status.Conditions
	case *v1alpha1.ProviderConfig:
		return o.Status.Conditions
	default:
		return nil
	}
}

// TestOperatorAsDeployed runs the operator as the Deployment does, over TLS to its database with a client's certificate, through the main
// job, and through an orderly end in the middle of work.
func TestOperatorAsDeployed(t *testing.T) {
	l := newLab(t)
	verifyTLS(t, l.database)

	hang := int32(100)
	l.provider("good", nil)
	l.provider("hangs", func(s *v1alpha1.SimulatedProvider) { s.HangPercent = &hang })
	l.machine("m1", "good")
	l.machine("m2", "hangs")
	l.await(l.claim("start", nil, "m1"), v1alpha1.ReasonComplete)

	// Secrets are read where config/pool is applied, and nowhere else.
	elsewhere := devtest.Namespace(t)
	for _, namespace := range []string{l.namespace, elsewhere} {
		l.sshKey(namespace)
	}
	l.await(l.ssh(l.namespace), v1alpha1.ReasonRecorded)
	refused := l.ssh(elsewhere)
	l.await(refused, v1alpha1.ReasonSecretMissing)
	if c := meta.FindStatusCondition(refused.Status.Conditions, string(v1alpha1.ConditionReady)); !strings.Contains(c.Message, "bind it the role for pools there") {
		t.Errorf("the message says %q", c.Message)
	}

	l.verifyMetrics()
	l.verifyConfined()

	l.await(l.claim("hang", nil, "m2"), v1alpha1.ReasonWorking)
	l.pod.terminate()
	l.verifyHandedOver("hang")
}

// verifyTLS sees that the operator has come over TLS, and that there is no other way for it.
func verifyTLS(t *testing.T, d *database) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), d.url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var encrypted, plain int
	err = conn.QueryRow(t.Context(), `SELECT count(*) FILTER (WHERE ssl AND client_dn = '/CN=bmdb'), count(*) FILTER (WHERE NOT ssl)
		FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'bmdb bmdb-operator%'`).Scan(&encrypted, &plain)
	if err != nil || encrypted == 0 || plain > 0 {
		t.Errorf("the operator has %d connections with its certificate and %d without TLS: %v", encrypted, plain, err)
	}
}

// verifyMetrics asks for the metrics as nobody, as the operator, and as somebody who may read them.
func (l *lab) verifyMetrics() {
	l.t.Helper()
	ctx := l.t.Context()
	reader := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "prometheus"}}
	l.create(reader)
	l.create(&rbacv1.ClusterRoleBinding{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "metrics-"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: "bmdb-operator-metrics-reader"},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Name: reader.Name, Namespace: reader.Namespace}},
	})
	token := func(namespace, name string) string {
		token, err := deployment.Token(ctx, l.plane, namespace, name)
		if err != nil {
			l.t.Fatal(err)
		}
		return token
	}
	for _, test := range []struct {
		who, token string
		want       int
	}{
		{"nobody", "", http.StatusUnauthorized},
		{"a stranger", "a.b.c", http.StatusInternalServerError}, // what the API server calls an error, which it is for this filter too
		{"the operator", token(deployment.Namespace, deployment.Name), http.StatusForbidden},
		{"a reader", token(reader.Namespace, reader.Name), http.StatusOK},
	} {
		status, body, err := get(ctx, "https://"+l.pod.metrics+"/metrics", test.token)
		if err != nil || status != test.want {
			l.t.Errorf("%s gets %d, want %d: %v", test.who, status, test.want, err)
		}
		if shown := strings.Contains(body, "\nbmdb_"); shown != (test.want == http.StatusOK) {
			l.t.Errorf("%s sees metrics: %t", test.who, shown)
		}
	}
	if status, _, err := get(ctx, "http://"+l.pod.metrics+"/metrics", ""); err == nil && status == http.StatusOK {
		l.t.Error("metrics are served without TLS")
	}
}

// verifyConfined sees what the operator's process is, as far as root can make it that.
func (l *lab) verifyConfined() {
	l.t.Helper()
	if !confined() {
		return
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", l.pod.process.Pid()))
	if err != nil {
		l.t.Fatal(err)
	}
	for _, want := range []string{"\nUid:\t65532\t65532\t65532\t65532\n", "\nGid:\t65532\t65532\t65532\t65532\n", "\nCapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			l.t.Errorf("the process is not %q", want)
		}
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/root", l.pod.process.Pid()))
	if err != nil || root != filepath.Clean(l.pod.root()) {
		l.t.Errorf("the process sees %s: %v", root, err)
	}
}

// verifyHandedOver sees that the operator has let go of a claim's machines before it ended, so that nobody has to wait for its lease.
func (l *lab) verifyHandedOver(key string) {
	l.t.Helper()
	conn, err := pgx.Connect(l.t.Context(), l.database.url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close(l.t.Context())
	var sessions, owned, locks int
	err = conn.QueryRow(l.t.Context(), `SELECT (SELECT count(*) FROM sessions WHERE session_ended_at IS NULL),
		(SELECT count(*) FROM claims c JOIN sessions s ON s.session_id = c.owner_session WHERE claim_key = $1 AND s.session_ended_at IS NULL),
		(SELECT count(*) FROM work WHERE work_id IS NOT NULL)`, key).Scan(&sessions, &owned, &locks)
	if err != nil || sessions+owned+locks > 0 {
		l.t.Errorf("the operator has left %d sessions, %d claims that it owns, and %d locked machines: %v", sessions, owned, locks, err)
	}
}
