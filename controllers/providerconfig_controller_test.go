// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"strings"
	"testing"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"golang.org/x/crypto/ssh"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

func privateKey(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// TestSSHProvider goes through what can be missing, one after the other, until nothing is.
func TestSSHProvider(t *testing.T) {
	l := newLab(t, labOptions{})
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: "lab"}}
	p.Spec.Type = v1alpha1.ProviderTypeSSH
	p.Spec.SSH = v1alpha1.SSHProvider{
		User: "root", PrivateKeySecretRef: v1alpha1.SecretKeyReference{Name: "lab-ssh", Key: "ssh-privatekey"},
		HostKeys: v1alpha1.SSHHostKeys{Policy: v1alpha1.HostKeyPolicyKnownHosts, KnownHostsRef: v1alpha1.KnownHostsReference{
			Kind: v1alpha1.KnownHostsKindConfigMap, Name: "lab-known-hosts", Key: "known_hosts",
		}},
	}
	l.create(p)
	m := l.machine("m", "lab")
	l.reconcile(m)
	c := l.claim("c", nil, "m")
	refused := func(reason v1alpha1.Reason, text string) {
		t.Helper()
		l.reconcile(p)
		l.verify(p, metav1.ConditionFalse, reason, status.FailedStatus)
		if got := meta.FindStatusCondition(p.Status.Conditions, "Ready").Message; !strings.Contains(got, text) {
			t.Errorf("message is %q, want %q in it", got, text)
		}
		// The claims that need it say so, and nothing is locked.
		l.reconcile(c)
		l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonProviderNotReady, status.FailedStatus)
		if !strings.Contains(message(c), string(reason)) {
			t.Errorf("message of the claim is %q", message(c))
		}
	}
	refused(v1alpha1.ReasonSecretMissing, "there is no Secret lab-ssh")
	secret := l.secret("lab-ssh", map[string][]byte{"other": []byte("x")})
	refused(v1alpha1.ReasonSecretMissing, "has no key ssh-privatekey")
	l.update(secret, func() { secret.Data["ssh-privatekey"] = []byte("not a key, but a secret") })
	hosts := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "lab-known-hosts"}}
	refused(v1alpha1.ReasonKnownHostsMissing, "there is no ConfigMap lab-known-hosts")
	l.create(hosts)
	refused(v1alpha1.ReasonKnownHostsMissing, "has no key known_hosts")
	l.update(hosts, func() { hosts.Data = map[string]string{"known_hosts": ""} })
	refused(v1alpha1.ReasonInvalidConfiguration, "private key")
	if got := meta.FindStatusCondition(p.Status.Conditions, "Ready").Message; strings.Contains(got, "but a secret") {
		t.Errorf("message %q shows the secret", got)
	}
	l.update(secret, func() { secret.Data["ssh-privatekey"] = privateKey(t) })
	result := l.reconcile(p)
	l.verify(p, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
	if result.RequeueAfter <= 0 {
		t.Error("a Secret that goes would not be noticed")
	}
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonPending, status.InProgressStatus)
}

func TestSimulatedNeedsAFlag(t *testing.T) {
	l := newLab(t, labOptions{})
	p := l.simulated("lab")
	l.verify(p, metav1.ConditionFalse, v1alpha1.ReasonSimulatedNotAllowed, status.FailedStatus)
	allowed := newLab(t, labOptions{namespace: l.namespace, database: l.url(), allowSimulated: true})
	allowed.reconcile(p)
	l.verify(p, metav1.ConditionTrue, v1alpha1.ReasonRecorded, status.CurrentStatus)
}

func TestProviderCountsItsMachines(t *testing.T) {
	l := fleet(t, 3, labOptions{})
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: "lab", Namespace: l.namespace}}
	l.reconcile(p)
	if p.Status.Machines.Managed == nil || *p.Status.Machines.Managed != 3 {
		t.Errorf("machines are %+v", p.Status.Machines)
	}
}

// TestProviderDeleted: its limits go with the object, and the claims that need it say so.
func TestProviderDeleted(t *testing.T) {
	l := fleet(t, 1, labOptions{})
	p := &v1alpha1.ProviderConfig{ObjectMeta: metav1.ObjectMeta{Name: "lab", Namespace: l.namespace}}
	l.update(p, func() { p.Spec.Limits.Parallelism = new(int32(0)) })
	l.reconcile(p)
	limits := func() *int64 {
		state, err := l.conn.ProviderSnapshot(t.Context(), cluster, l.namespace, "lab")
		if err != nil {
			t.Fatal(err)
		}
		return state.Parallelism
	}
	if got := limits(); got == nil || *got != 0 {
		t.Errorf("limit is %v", got)
	}
	c := l.claim("c", nil, "m00")
	l.clock.SetTime(time.Now().Add(10 * time.Second))
	l.remove(p)
	l.reconcile(p)
	if got := limits(); got != nil {
		t.Errorf("limit is still %d", *got)
	}
	l.reconcile(c)
	l.verify(c, metav1.ConditionFalse, v1alpha1.ReasonProviderNotReady, status.FailedStatus)
}
