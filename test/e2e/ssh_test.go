// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh/knownhosts"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/bmdbtest"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/sshmachine"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

const (
	sshMachines = 12
	// stateDir is the agent's directory on a machine, from its root.
	stateDir = "var/lib/bmdb"
	// persistent is a number of attempts that a test does not use up while it looks at failures.
	persistent = 1000
)

// sshLab is a lab with machines that are reached over SSH: the first six are those of the main job, the others have one trouble each.
type sshLab struct {
	*lab
	fleet *sshmachine.Fleet
}

func (l *sshLab) in(t *testing.T) *sshLab { return &sshLab{l.lab.in(t), l.fleet} }

// box is the machine with a number from 1.
func (l *sshLab) box(n int) *sshmachine.Machine { return l.fleet.Machines[n-1] }

// TestSSH holds the main job against real SSH machines: as root they have a network and an sshd of their own, otherwise they are what
// user namespaces allow. The subtests share operators and machines, and each has machines of its own.
func TestSSH(t *testing.T) {
	t.Parallel()
	fleet, err := sshmachine.Start(t.Context(), sshMachines, sshmachine.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := fleet.Stop(); err != nil {
			t.Error(err)
		}
	})
	if note := fleet.Reduced(); note != "" {
		t.Log(note)
	}
	l := &sshLab{newLab(t, testbed.Options{}), fleet}
	pods := []*testbed.Operator{l.Start("operator-a", "--lease", "5s"), l.Start("operator-b", "--lease", "5s")}
	t.Run("SixMachines", func(t *testing.T) { l.in(t).testSixMachines(pods) })
	t.Run("HostKeyChanged", func(t *testing.T) { l.in(t).testHostKeyChanged() })
	t.Run("HostKeyNotInList", func(t *testing.T) { l.in(t).testHostKeyNotInList() })
	t.Run("OwnedByAnotherDatabase", func(t *testing.T) { l.in(t).testOwnedByAnotherDatabase() })
	t.Run("HangingMachine", func(t *testing.T) { l.in(t).testHangingMachine() })
	t.Run("StoppedPodWritesNothing", func(t *testing.T) { l.in(t).testStoppedPod(pods) })
}

// provider is a ProviderConfig for the fleet's machines; without a list of known hosts it trusts on first use.
func (l *sshLab) provider(name, knownHosts string) *v1alpha1.ProviderConfig {
	p := &v1alpha1.ProviderConfig{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: name},
		Spec: v1alpha1.ProviderConfigSpec{Type: v1alpha1.ProviderTypeSSH, SSH: v1alpha1.SSHProvider{
			User: "root", PrivateKeySecretRef: v1alpha1.SecretKeyReference{Name: "lab-ssh", Key: corev1.SSHAuthPrivateKey},
			HostKeys: v1alpha1.SSHHostKeys{Policy: v1alpha1.HostKeyPolicyTrustOnFirstUse},
		}},
	}
	if knownHosts != "" {
		p.Spec.SSH.HostKeys = v1alpha1.SSHHostKeys{
			Policy:        v1alpha1.HostKeyPolicyKnownHosts,
			KnownHostsRef: v1alpha1.KnownHostsReference{Kind: v1alpha1.KnownHostsKindConfigMap, Name: knownHosts, Key: "known_hosts"},
		}
	}
	return p
}

func (l *sshLab) secret() *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: "lab-ssh"}, Type: corev1.SecretTypeSSHAuth,
		Data: map[string][]byte{corev1.SSHAuthPrivateKey: l.fleet.ClientKeyPEM()},
	}
}

func (l *sshLab) knownHosts(name, list string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: l.Namespace, Name: name}, Data: map[string]string{"known_hosts": list}}
}

// object is the Machine of a machine.
func (l *sshLab) object(box *sshmachine.Machine, provider string) *v1alpha1.Machine {
	m := l.Machine(box.Name, provider)
	m.Spec.Address = box.Address
	return m
}

// testSixMachines is the main job, with a Secret that comes last.
func (l *sshLab) testSixMachines(pods []*testbed.Operator) {
	boxes := l.fleet.Machines[:6]
	objects := []client.Object{l.knownHosts("lab-known-hosts", string(l.fleet.KnownHosts())), l.provider("lab", "lab-known-hosts")}
	var names []string
	for _, box := range boxes {
		objects = append(objects, l.object(box, "lab"))
		names = append(names, box.Name)
	}
	claim := l.Claim("six", names...)
	claim.Spec.Parallelism = 3
	l.Create(append(objects, claim)...)
	l.AwaitClaim("six", v1alpha1.ReasonProviderNotReady)
	l.Eventually(testbed.Patience, "the provider says that its Secret is missing", func(ctx context.Context) error {
		var p v1alpha1.ProviderConfig
		if err := l.Client.Get(ctx, client.ObjectKey{Namespace: l.Namespace, Name: "lab"}, &p); err != nil {
			return err
		}
		if !testbed.ConditionIs(p.Status.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonSecretMissing) || !testbed.IsTrue(p.Status.Conditions, v1alpha1.ConditionStalled) {
			return errors.New(testbed.Describe(p.Status.Conditions))
		}
		return nil
	})
	if n := l.Count("SELECT count(*) FROM work_history"); n != 0 {
		l.T.Errorf("%d machines were locked without a Secret", n)
	}

	processes := []int{pods[0].Process.Pid(), pods[1].Process.Pid()}
	created := time.Now()
	l.Create(l.secret())
	claim = l.AwaitClaim("six", v1alpha1.ReasonComplete)
	l.T.Logf("complete %s after the Secret came", time.Since(created).Round(time.Second/10))
	if now := []int{pods[0].Process.Pid(), pods[1].Process.Pid()}; !slices.Equal(now, processes) || !pods[0].Running() || !pods[1].Running() {
		l.T.Error("an operator was started again")
	}
	if claim.Status.Progress != "6/6" {
		l.T.Errorf("progress is %s", claim.Status.Progress)
	}
	history := l.History("six")
	for _, box := range boxes {
		if got := testbed.EventNames(history[box.Name]); got != "Started Finished" {
			l.T.Errorf("machine %s: %s", box.Name, got)
		}
		l.verifyAgent(box)
	}
}

// verifyAgent sees that the agent runs on a machine, that the machine says whose it is, and that the database knows the agent's key.
func (l *sshLab) verifyAgent(box *sshmachine.Machine) {
	l.T.Helper()
	var object *v1alpha1.Machine
	l.Eventually(testbed.Patience, "machine "+box.Name+" shows its agent", func(ctx context.Context) (err error) {
		if object, err = l.ReadMachine(ctx, box.Name); err == nil && object.Status.Tags.AgentStarted.PublicKey == "" {
			err = errors.New("it does not")
		}
		return err
	})
	if !l.agentRuns(box) {
		l.T.Errorf("machine %s: no agent runs", box.Name)
	}
	owner, err := agent.ParseOwner(l.file(box, agent.OwnerFile))
	if err != nil {
		l.T.Fatalf("machine %s: %v", box.Name, err)
	}
	if owner.MachineID.String() != object.Status.MachineID || owner.DatabaseID.String() != object.Status.DatabaseID {
		l.T.Errorf("machine %s: it says that it is machine %s of database %s, its status says %s and %s",
			box.Name, owner.MachineID, owner.DatabaseID, object.Status.MachineID, object.Status.DatabaseID)
	}
	block, _ := pem.Decode(l.file(box, agent.KeyFile))
	if block == nil {
		l.T.Fatalf("machine %s: its key is not in PEM", box.Name)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		l.T.Fatalf("machine %s: %v", box.Name, err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		l.T.Fatalf("machine %s: its key is a %T", box.Name, parsed)
	}
	public, _ := private.Public().(ed25519.PublicKey)
	if got, want := object.Status.Tags.AgentStarted.PublicKey, base64.StdEncoding.EncodeToString(public); got != want {
		l.T.Errorf("machine %s: status shows the agent's key %s, it is %s", box.Name, got, want)
	}
	if n := l.Count("SELECT count(*) FROM machine_agent_started WHERE machine_id = $1 AND agent_public_key = $2", object.Status.MachineID, []byte(public)); n != 1 {
		l.T.Errorf("machine %s: the database has another key of its agent", box.Name)
	}
}

func (l *sshLab) agentRuns(box *sshmachine.Machine) bool {
	l.T.Helper()
	processes, err := box.Processes()
	if err != nil {
		l.T.Fatal(err)
	}
	return slices.Contains(processes, "agent")
}

// file is a file of the agent on a machine.
func (l *sshLab) file(box *sshmachine.Machine, name string) []byte {
	l.T.Helper()
	root, err := box.Files()
	if err != nil {
		l.T.Fatal(err)
	}
	defer root.Close()
	content, err := root.ReadFile(path.Join(stateDir, name))
	if err != nil {
		l.T.Fatalf("machine %s: %v", box.Name, err)
	}
	return content
}

// written is all that is in the agent's directory on a machine, with the times of its writing; empty if there is none.
func (l *sshLab) written(box *sshmachine.Machine) string {
	l.T.Helper()
	root, err := box.Files()
	if err != nil {
		l.T.Fatal(err)
	}
	defer root.Close()
	var text strings.Builder
	err = fs.WalkDir(root.FS(), stateDir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(&text, name, info.Mode(), info.Size(), info.ModTime().UnixNano())
		return err
	})
	if err != nil {
		l.T.Fatalf("machine %s: %v", box.Name, err)
	}
	return text.String()
}

// takeBack takes the tag AgentStarted from a machine, as a person would who wants the agent started again.
func (l *sshLab) takeBack(box *sshmachine.Machine) {
	l.T.Helper()
	conn := bmdbtest.Open(l.T, l.Database)
	machine, err := conn.MachineByName(l.T.Context(), l.Namespace, box.Name)
	if err != nil {
		l.T.Fatal(err)
	}
	session, err := conn.StartSession(l.T.Context(), bmdb.WithoutMaintenance())
	if err != nil {
		l.T.Fatal(err)
	}
	if err := session.Transact(l.T.Context(), func(q *model.Queries) error { return q.MachineDeleteAgentStarted(l.T.Context(), machine) }); err != nil {
		l.T.Error(err)
	}
	if err := session.Close(l.T.Context()); err != nil {
		l.T.Error(err)
	}
}

// testHostKeyChanged: the key that a machine shows first is pinned, and no other is taken until a person accepts it.
func (l *sshLab) testHostKeyChanged() {
	box := l.box(7)
	l.Create(l.provider("first", ""), l.object(box, "first"), l.Claim("first", box.Name))
	l.AwaitClaim("first", v1alpha1.ReasonComplete)
	l.verifyAgent(box)
	l.verifyPinned(box)

	l.takeBack(box)
	if err := box.ChangeHostKey(l.T.Context()); err != nil {
		l.T.Fatal(err)
	}
	before := l.written(box)
	again := l.Claim("again", box.Name)
	again.Spec.MaxAttempts = persistent
	l.Create(again)
	machine := l.AwaitMachine(box.Name, v1alpha1.ReasonHostKeyMismatch)
	if !testbed.IsTrue(machine.Status.Conditions, v1alpha1.ConditionStalled) {
		l.T.Error("the machine is not Stalled")
	}
	if message := testbed.Condition(machine.Status.Conditions, v1alpha1.ConditionReady).Message; !strings.Contains(message, "accept") {
		l.T.Errorf("the message does not say what to do: %s", message)
	}
	if now := l.written(box); now != before || l.agentRuns(box) {
		l.T.Errorf("something was done to a machine with another host key:\n%s\nbefore it was:\n%s", now, before)
	}

	out, err := l.Run(l.Database, "accept", box.Name, "host-key", "--namespace", l.Namespace, "--actor", "a person")
	if err != nil {
		l.T.Fatalf("accept: %v\n%s", err, out)
	}
	l.AwaitClaim("again", v1alpha1.ReasonComplete)
	l.AwaitMachine(box.Name, v1alpha1.ReasonRecorded)
	l.verifyAgent(box)
	l.verifyPinned(box)
	if n := l.Count("SELECT count(*) FROM audit_log WHERE event = 'HostKeyAccepted' AND actor = 'a person' AND name = $1", box.Name); n != 1 {
		l.T.Errorf("the audit log has %d rows of the acceptance", n)
	}
}

func (l *sshLab) verifyPinned(box *sshmachine.Machine) {
	l.T.Helper()
	var pinned []byte
	if err := l.DB.QueryRow(l.T.Context(), "SELECT host_key FROM machine_identities WHERE pool = $1 AND name = $2", l.Namespace, box.Name).Scan(&pinned); err != nil {
		l.T.Fatal(err)
	}
	if !bytes.Equal(pinned, box.HostKey().Marshal()) {
		l.T.Errorf("machine %s: the key that it shows is not the one that is pinned", box.Name)
	}
}

// testHostKeyNotInList: a list of known hosts is all that is trusted, and is read anew at each start.
func (l *sshLab) testHostKeyNotInList() {
	box := l.box(8)
	wrong := knownhosts.Line([]string{box.Address}, l.box(1).HostKey()) + "\n"
	list := l.knownHosts("wrong-known-hosts", wrong)
	claim := l.Claim("listed", box.Name)
	claim.Spec.MaxAttempts = persistent
	l.Create(list, l.provider("listed", "wrong-known-hosts"), l.object(box, "listed"), claim)
	l.AwaitMachine(box.Name, v1alpha1.ReasonHostKeyMismatch)
	if now := l.written(box); now != "" {
		l.T.Errorf("something was done to a machine with another host key:\n%s", now)
	}
	list.Data["known_hosts"] = knownhosts.Line([]string{box.Address}, box.HostKey()) + "\n"
	if err := l.Client.Update(l.T.Context(), list); err != nil {
		l.T.Fatal(err)
	}
	l.AwaitClaim("listed", v1alpha1.ReasonComplete)
	l.AwaitMachine(box.Name, v1alpha1.ReasonRecorded)
	l.verifyPinned(box)
	l.verifyAgent(box)
}

// testOwnedByAnotherDatabase: an operator with another database gets nowhere with a machine that is ours.
func (l *sshLab) testOwnedByAnotherDatabase() {
	box := l.box(1)
	before := l.written(box)
	thief := &sshLab{newLab(l.T, testbed.Options{}), l.fleet}
	thief.Start("operator-thief", "--lease", "5s")
	claim := thief.Claim("steal", box.Name)
	claim.Spec.MaxAttempts = 2
	thief.Create(thief.secret(), thief.provider("lab", ""), thief.object(box, "lab"), claim)
	thief.AwaitMachine(box.Name, v1alpha1.ReasonOwnedByAnotherDatabase)
	failed := thief.AwaitClaim("steal", v1alpha1.ReasonCompletionsUnreachable)
	if len(failed.Status.Failures) != 1 || !strings.HasPrefix(failed.Status.Failures[0].Cause, string(v1alpha1.ReasonOwnedByAnotherDatabase)) {
		l.T.Errorf("the claim's failures are %v", failed.Status.Failures)
	}
	if now := l.written(box); now != before {
		l.T.Errorf("something was done to a machine of another database:\n%s\nbefore it was:\n%s", now, before)
	}
	if n := thief.Count("SELECT count(*) FROM work_history WHERE event = 'Finished'"); n != 0 {
		l.T.Errorf("%d works were finished", n)
	}
	l.verifyAgent(box)

	// A person may decide that it is that database's machine. The agent goes on with the key that it has.
	agentKey := l.file(box, agent.KeyFile)
	out, err := thief.Run(thief.Database, "accept", box.Name, "owner", "--namespace", thief.Namespace, "--actor", "a person")
	if err != nil {
		l.T.Fatalf("accept: %v\n%s", err, out)
	}
	thief.Create(thief.Claim("take", box.Name))
	thief.AwaitClaim("take", v1alpha1.ReasonComplete)
	thief.AwaitMachine(box.Name, v1alpha1.ReasonRecorded)
	thief.verifyAgent(box)
	if !bytes.Equal(l.file(box, agent.KeyFile), agentKey) {
		l.T.Error("the agent has another key")
	}
	if n := thief.Count("SELECT count(*) FROM audit_log WHERE name = $1 AND (event = 'OwnerAccepted' AND actor = 'a person' OR event = 'OwnerReplaced')", box.Name); n != 2 {
		l.T.Errorf("the audit log has %d rows of the acceptance and its use, want 2", n)
	}
	// What was accepted once is used up: now the first database is refused.
	l.takeBack(box)
	claim = l.Claim("lost", box.Name)
	claim.Spec.MaxAttempts = 1
	l.Create(claim)
	l.AwaitMachine(box.Name, v1alpha1.ReasonOwnedByAnotherDatabase)
	l.AwaitClaim("lost", v1alpha1.ReasonCompletionsUnreachable)
}

// testHangingMachine: a machine that takes connections and never answers ends in time, with a cause, and keeps nobody else waiting.
func (l *sshLab) testHangingMachine() {
	const timeout = 6 * time.Second
	hanging, others := l.box(9), []*sshmachine.Machine{l.box(10), l.box(11)}
	if err := hanging.Hang(); err != nil {
		l.T.Fatal(err)
	}
	l.Create(l.object(hanging, "lab"), l.object(others[0], "lab"), l.object(others[1], "lab"))
	claim := l.Claim("hang", hanging.Name, others[0].Name, others[1].Name)
	claim.Spec.TimeoutSeconds, claim.Spec.MaxAttempts = int32(timeout/time.Second), 1
	l.Create(claim)
	claim = l.AwaitClaim("hang", v1alpha1.ReasonCompletionsUnreachable)
	if !testbed.IsTrue(claim.Status.Conditions, v1alpha1.ConditionFinished) || !testbed.IsTrue(claim.Status.Conditions, v1alpha1.ConditionFailed) || ptr.Deref(claim.Status.Succeeded, 0) != 2 {
		l.T.Errorf("the claim ends with %s; %d machines are done", testbed.Describe(claim.Status.Conditions), ptr.Deref(claim.Status.Succeeded, 0))
	}
	if len(claim.Status.Failures) != 1 || claim.Status.Failures[0].Machine != hanging.Name || !strings.HasPrefix(claim.Status.Failures[0].Cause, string(v1alpha1.ReasonTimedOut)) {
		l.T.Errorf("the claim's failures are %v", claim.Status.Failures)
	}
	history := l.History("hang")
	hung := history[hanging.Name]
	if got := testbed.EventNames(hung); got != "Started Failed" {
		l.T.Fatalf("machine %s: %s", hanging.Name, got)
	}
	// Its time, and the grace of a worker that does not stop.
	if took := hung[1].At.Sub(hung[0].At); took < timeout || took > timeout+15*time.Second {
		l.T.Errorf("machine %s ended after %s, its time was %s", hanging.Name, took, timeout)
	}
	for _, box := range others {
		if got := testbed.EventNames(history[box.Name]); got != "Started Finished" {
			l.T.Errorf("machine %s: %s", box.Name, got)
		} else if !history[box.Name][1].At.Before(hung[1].At) {
			l.T.Errorf("machine %s was finished only after the one that hangs", box.Name)
		}
	}
	if err := hanging.Resume(); err != nil {
		l.T.Fatal(err)
	}
	if now := l.written(hanging); now != "" {
		l.T.Errorf("something was done to the machine that hung:\n%s", now)
	}
}

// testStoppedPod stops an operator while it waits for a machine's answer. Until it wakes its work is lost, and the claim is gone: when the
// machine answers, nobody may touch it.
func (l *sshLab) testStoppedPod(pods []*testbed.Operator) {
	box := l.box(12)
	if err := box.Hang(); err != nil {
		l.T.Fatal(err)
	}
	claim := l.Claim("asleep", box.Name)
	l.Create(l.object(box, "lab"), claim)
	l.AwaitCount("the machine is worked on", 1, testbed.CountOpen, "asleep")
	sleeper, _ := l.OwnerOf("asleep", pods...)
	sleeper.Signal(syscall.SIGSTOP)
	l.AwaitCount("the work of the one that sleeps is lost", 1, testbed.CountOf, "asleep", "Lost")
	l.Remove(claim)
	l.AwaitGone(claim)
	l.AwaitCount("nobody works on the machine", 0, testbed.CountOpen, "asleep")

	asleep := sleeper.LogEnd()
	if err := box.Resume(); err != nil {
		l.T.Fatal(err)
	}
	sleeper.Signal(syscall.SIGCONT)
	l.Eventually(testbed.Patience, "the work of the one that slept ends", func(context.Context) error {
		if len(sleeper.EndsOf("asleep", asleep)) == 0 {
			return errors.New("it goes on")
		}
		return nil
	})
	l.Eventually(testbed.Patience, "the one that slept is ready again", sleeper.Ready)
	if now := l.written(box); now != "" {
		l.T.Errorf("something was done to a machine that nobody held:\n%s", now)
	}
}
