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
	l := &sshLab{newLab(t, labOptions{}), fleet}
	pods := []*operator{l.start("operator-a", "--lease", "5s"), l.start("operator-b", "--lease", "5s")}
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
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: name},
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
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: "lab-ssh"}, Type: corev1.SecretTypeSSHAuth,
		Data: map[string][]byte{corev1.SSHAuthPrivateKey: l.fleet.ClientKeyPEM()},
	}
}

func (l *sshLab) knownHosts(name, list string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: name}, Data: map[string]string{"known_hosts": list}}
}

// object is the Machine of a machine.
func (l *sshLab) object(box *sshmachine.Machine, provider string) *v1alpha1.Machine {
	m := l.machine(box.Name, provider)
	m.Spec.Address = box.Address
	return m
}

// testSixMachines is the main job, with a Secret that comes last.
func (l *sshLab) testSixMachines(pods []*operator) {
	boxes := l.fleet.Machines[:6]
	objects := []client.Object{l.knownHosts("lab-known-hosts", string(l.fleet.KnownHosts())), l.provider("lab", "lab-known-hosts")}
	var names []string
	for _, box := range boxes {
		objects = append(objects, l.object(box, "lab"))
		names = append(names, box.Name)
	}
	claim := l.claim("six", names...)
	claim.Spec.Parallelism = 3
	l.create(append(objects, claim)...)
	l.awaitClaim("six", v1alpha1.ReasonProviderNotReady)
	l.eventually(patience, "the provider says that its Secret is missing", func(ctx context.Context) error {
		var p v1alpha1.ProviderConfig
		if err := l.client.Get(ctx, client.ObjectKey{Namespace: l.namespace, Name: "lab"}, &p); err != nil {
			return err
		}
		if !conditionIs(p.Status.Conditions, v1alpha1.ConditionReady, v1alpha1.ReasonSecretMissing) || !isTrue(p.Status.Conditions, v1alpha1.ConditionStalled) {
			return errors.New(describe(p.Status.Conditions))
		}
		return nil
	})
	if n := l.count("SELECT count(*) FROM work_history"); n != 0 {
		l.t.Errorf("%d machines were locked without a Secret", n)
	}

	processes := []int{pods[0].process.Pid(), pods[1].process.Pid()}
	created := time.Now()
	l.create(l.secret())
	claim = l.awaitClaim("six", v1alpha1.ReasonComplete)
	l.t.Logf("complete %s after the Secret came", time.Since(created).Round(time.Second/10))
	if now := []int{pods[0].process.Pid(), pods[1].process.Pid()}; !slices.Equal(now, processes) || !pods[0].running() || !pods[1].running() {
		l.t.Error("an operator was started again")
	}
	if claim.Status.Progress != "6/6" {
		l.t.Errorf("progress is %s", claim.Status.Progress)
	}
	history := l.history("six")
	for _, box := range boxes {
		if got := eventNames(history[box.Name]); got != "Started Finished" {
			l.t.Errorf("machine %s: %s", box.Name, got)
		}
		l.verifyAgent(box)
	}
}

// verifyAgent sees that the agent runs on a machine, that the machine says whose it is, and that the database knows the agent's key.
func (l *sshLab) verifyAgent(box *sshmachine.Machine) {
	l.t.Helper()
	var object *v1alpha1.Machine
	l.eventually(patience, "machine "+box.Name+" shows its agent", func(ctx context.Context) (err error) {
		if object, err = l.readMachine(ctx, box.Name); err == nil && object.Status.Tags.AgentStarted.PublicKey == "" {
			err = errors.New("it does not")
		}
		return err
	})
	if !l.agentRuns(box) {
		l.t.Errorf("machine %s: no agent runs", box.Name)
	}
	owner, err := agent.ParseOwner(l.file(box, agent.OwnerFile))
	if err != nil {
		l.t.Fatalf("machine %s: %v", box.Name, err)
	}
	if owner.MachineID.String() != object.Status.MachineID || owner.DatabaseID.String() != object.Status.DatabaseID {
		l.t.Errorf("machine %s: it says that it is machine %s of database %s, its status says %s and %s",
			box.Name, owner.MachineID, owner.DatabaseID, object.Status.MachineID, object.Status.DatabaseID)
	}
	block, _ := pem.Decode(l.file(box, agent.KeyFile))
	if block == nil {
		l.t.Fatalf("machine %s: its key is not in PEM", box.Name)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		l.t.Fatalf("machine %s: %v", box.Name, err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		l.t.Fatalf("machine %s: its key is a %T", box.Name, parsed)
	}
	public, _ := private.Public().(ed25519.PublicKey)
	if got, want := object.Status.Tags.AgentStarted.PublicKey, base64.StdEncoding.EncodeToString(public); got != want {
		l.t.Errorf("machine %s: status shows the agent's key %s, it is %s", box.Name, got, want)
	}
	if n := l.count("SELECT count(*) FROM machine_agent_started WHERE machine_id = $1 AND agent_public_key = $2", object.Status.MachineID, []byte(public)); n != 1 {
		l.t.Errorf("machine %s: the database has another key of its agent", box.Name)
	}
}

func (l *sshLab) agentRuns(box *sshmachine.Machine) bool {
	l.t.Helper()
	processes, err := box.Processes()
	if err != nil {
		l.t.Fatal(err)
	}
	return slices.Contains(processes, "agent")
}

// file is a file of the agent on a machine.
func (l *sshLab) file(box *sshmachine.Machine, name string) []byte {
	l.t.Helper()
	root, err := box.Files()
	if err != nil {
		l.t.Fatal(err)
	}
	defer root.Close()
	content, err := root.ReadFile(path.Join(stateDir, name))
	if err != nil {
		l.t.Fatalf("machine %s: %v", box.Name, err)
	}
	return content
}

// written is all that is in the agent's directory on a machine, with the times of its writing; empty if there is none.
func (l *sshLab) written(box *sshmachine.Machine) string {
	l.t.Helper()
	root, err := box.Files()
	if err != nil {
		l.t.Fatal(err)
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
		l.t.Fatalf("machine %s: %v", box.Name, err)
	}
	return text.String()
}

// takeBack takes the tag AgentStarted from a machine, as a person would who wants the agent started again.
func (l *sshLab) takeBack(box *sshmachine.Machine) {
	l.t.Helper()
	conn := bmdbtest.Open(l.t, l.database)
	machine, err := conn.MachineByName(l.t.Context(), l.namespace, box.Name)
	if err != nil {
		l.t.Fatal(err)
	}
	session, err := conn.StartSession(l.t.Context(), bmdb.WithoutMaintenance())
	if err != nil {
		l.t.Fatal(err)
	}
	if err := session.Transact(l.t.Context(), func(q *model.Queries) error { return q.MachineDeleteAgentStarted(l.t.Context(), machine) }); err != nil {
		l.t.Error(err)
	}
	if err := session.Close(l.t.Context()); err != nil {
		l.t.Error(err)
	}
}

// testHostKeyChanged: the key that a machine shows first is pinned, and no other is taken until a person accepts it.
func (l *sshLab) testHostKeyChanged() {
	box := l.box(7)
	l.create(l.provider("first", ""), l.object(box, "first"), l.claim("first", box.Name))
	l.awaitClaim("first", v1alpha1.ReasonComplete)
	l.verifyAgent(box)
	l.verifyPinned(box)

	l.takeBack(box)
	if err := box.ChangeHostKey(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	before := l.written(box)
	again := l.claim("again", box.Name)
	again.Spec.MaxAttempts = persistent
	l.create(again)
	machine := l.awaitMachine(box.Name, v1alpha1.ReasonHostKeyMismatch)
	if !isTrue(machine.Status.Conditions, v1alpha1.ConditionStalled) {
		l.t.Error("the machine is not Stalled")
	}
	if message := condition(machine.Status.Conditions, v1alpha1.ConditionReady).Message; !strings.Contains(message, "accept") {
		l.t.Errorf("the message does not say what to do: %s", message)
	}
	if now := l.written(box); now != before || l.agentRuns(box) {
		l.t.Errorf("something was done to a machine with another host key:\n%s\nbefore it was:\n%s", now, before)
	}

	out, err := l.run(l.database, "accept", box.Name, "host-key", "--namespace", l.namespace, "--actor", "a person")
	if err != nil {
		l.t.Fatalf("accept: %v\n%s", err, out)
	}
	l.awaitClaim("again", v1alpha1.ReasonComplete)
	l.awaitMachine(box.Name, v1alpha1.ReasonRecorded)
	l.verifyAgent(box)
	l.verifyPinned(box)
	if n := l.count("SELECT count(*) FROM audit_log WHERE event = 'HostKeyAccepted' AND actor = 'a person' AND name = $1", box.Name); n != 1 {
		l.t.Errorf("the audit log has %d rows of the acceptance", n)
	}
}

func (l *sshLab) verifyPinned(box *sshmachine.Machine) {
	l.t.Helper()
	var pinned []byte
	if err := l.db.QueryRow(l.t.Context(), "SELECT host_key FROM machine_identities WHERE pool = $1 AND name = $2", l.namespace, box.Name).Scan(&pinned); err != nil {
		l.t.Fatal(err)
	}
	if !bytes.Equal(pinned, box.HostKey().Marshal()) {
		l.t.Errorf("machine %s: the key that it shows is not the one that is pinned", box.Name)
	}
}

// testHostKeyNotInList: a list of known hosts is all that is trusted, and is read anew at each start.
func (l *sshLab) testHostKeyNotInList() {
	box := l.box(8)
	wrong := knownhosts.Line([]string{box.Address}, l.box(1).HostKey()) + "\n"
	list := l.knownHosts("wrong-known-hosts", wrong)
	claim := l.claim("listed", box.Name)
	claim.Spec.MaxAttempts = persistent
	l.create(list, l.provider("listed", "wrong-known-hosts"), l.object(box, "listed"), claim)
	l.awaitMachine(box.Name, v1alpha1.ReasonHostKeyMismatch)
	if now := l.written(box); now != "" {
		l.t.Errorf("something was done to a machine with another host key:\n%s", now)
	}
	list.Data["known_hosts"] = knownhosts.Line([]string{box.Address}, box.HostKey()) + "\n"
	if err := l.client.Update(l.t.Context(), list); err != nil {
		l.t.Fatal(err)
	}
	l.awaitClaim("listed", v1alpha1.ReasonComplete)
	l.awaitMachine(box.Name, v1alpha1.ReasonRecorded)
	l.verifyPinned(box)
	l.verifyAgent(box)
}

// testOwnedByAnotherDatabase: an operator with another database gets nowhere with a machine that is ours.
func (l *sshLab) testOwnedByAnotherDatabase() {
	box := l.box(1)
	before := l.written(box)
	thief := &sshLab{newLab(l.t, labOptions{}), l.fleet}
	thief.start("operator-thief", "--lease", "5s")
	claim := thief.claim("steal", box.Name)
	claim.Spec.MaxAttempts = 2
	thief.create(thief.secret(), thief.provider("lab", ""), thief.object(box, "lab"), claim)
	thief.awaitMachine(box.Name, v1alpha1.ReasonOwnedByAnotherDatabase)
	failed := thief.awaitClaim("steal", v1alpha1.ReasonCompletionsUnreachable)
	if len(failed.Status.Failures) != 1 || !strings.HasPrefix(failed.Status.Failures[0].Cause, string(v1alpha1.ReasonOwnedByAnotherDatabase)) {
		l.t.Errorf("the claim's failures are %v", failed.Status.Failures)
	}
	if now := l.written(box); now != before {
		l.t.Errorf("something was done to a machine of another database:\n%s\nbefore it was:\n%s", now, before)
	}
	if n := thief.count("SELECT count(*) FROM work_history WHERE event = 'Finished'"); n != 0 {
		l.t.Errorf("%d works were finished", n)
	}
	l.verifyAgent(box)

	// A person may decide that it is that database's machine. The agent goes on with the key that it has.
	agentKey := l.file(box, agent.KeyFile)
	out, err := thief.run(thief.database, "accept", box.Name, "owner", "--namespace", thief.namespace, "--actor", "a person")
	if err != nil {
		l.t.Fatalf("accept: %v\n%s", err, out)
	}
	thief.create(thief.claim("take", box.Name))
	thief.awaitClaim("take", v1alpha1.ReasonComplete)
	thief.awaitMachine(box.Name, v1alpha1.ReasonRecorded)
	thief.verifyAgent(box)
	if !bytes.Equal(l.file(box, agent.KeyFile), agentKey) {
		l.t.Error("the agent has another key")
	}
	if n := thief.count("SELECT count(*) FROM audit_log WHERE name = $1 AND (event = 'OwnerAccepted' AND actor = 'a person' OR event = 'OwnerReplaced')", box.Name); n != 2 {
		l.t.Errorf("the audit log has %d rows of the acceptance and its use, want 2", n)
	}
	// What was accepted once is used up: now the first database is refused.
	l.takeBack(box)
	claim = l.claim("lost", box.Name)
	claim.Spec.MaxAttempts = 1
	l.create(claim)
	l.awaitMachine(box.Name, v1alpha1.ReasonOwnedByAnotherDatabase)
	l.awaitClaim("lost", v1alpha1.ReasonCompletionsUnreachable)
}

// testHangingMachine: a machine that takes connections and never answers ends in time, with a cause, and keeps nobody else waiting.
func (l *sshLab) testHangingMachine() {
	const timeout = 6 * time.Second
	hanging, others := l.box(9), []*sshmachine.Machine{l.box(10), l.box(11)}
	if err := hanging.Hang(); err != nil {
		l.t.Fatal(err)
	}
	l.create(l.object(hanging, "lab"), l.object(others[0], "lab"), l.object(others[1], "lab"))
	claim := l.claim("hang", hanging.Name, others[0].Name, others[1].Name)
	claim.Spec.TimeoutSeconds, claim.Spec.MaxAttempts = int32(timeout/time.Second), 1
	l.create(claim)
	claim = l.awaitClaim("hang", v1alpha1.ReasonCompletionsUnreachable)
	if !isTrue(claim.Status.Conditions, v1alpha1.ConditionFinished) || !isTrue(claim.Status.Conditions, v1alpha1.ConditionFailed) || ptr.Deref(claim.Status.Succeeded, 0) != 2 {
		l.t.Errorf("the claim ends with %s; %d machines are done", describe(claim.Status.Conditions), ptr.Deref(claim.Status.Succeeded, 0))
	}
	if len(claim.Status.Failures) != 1 || claim.Status.Failures[0].Machine != hanging.Name || !strings.HasPrefix(claim.Status.Failures[0].Cause, string(v1alpha1.ReasonTimedOut)) {
		l.t.Errorf("the claim's failures are %v", claim.Status.Failures)
	}
	history := l.history("hang")
	hung := history[hanging.Name]
	if got := eventNames(hung); got != "Started Failed" {
		l.t.Fatalf("machine %s: %s", hanging.Name, got)
	}
	// Its time, and the grace of a worker that does not stop.
	if took := hung[1].At.Sub(hung[0].At); took < timeout || took > timeout+15*time.Second {
		l.t.Errorf("machine %s ended after %s, its time was %s", hanging.Name, took, timeout)
	}
	for _, box := range others {
		if got := eventNames(history[box.Name]); got != "Started Finished" {
			l.t.Errorf("machine %s: %s", box.Name, got)
		} else if !history[box.Name][1].At.Before(hung[1].At) {
			l.t.Errorf("machine %s was finished only after the one that hangs", box.Name)
		}
	}
	if err := hanging.Resume(); err != nil {
		l.t.Fatal(err)
	}
	if now := l.written(hanging); now != "" {
		l.t.Errorf("something was done to the machine that hung:\n%s", now)
	}
}

// testStoppedPod stops an operator while it waits for a machine's answer. Until it wakes its work is lost, and the claim is gone: when the
// machine answers, nobody may touch it.
func (l *sshLab) testStoppedPod(pods []*operator) {
	box := l.box(12)
	if err := box.Hang(); err != nil {
		l.t.Fatal(err)
	}
	claim := l.claim("asleep", box.Name)
	l.create(l.object(box, "lab"), claim)
	l.awaitCount("the machine is worked on", 1, countOpen, "asleep")
	sleeper, _ := l.ownerOf("asleep", pods...)
	sleeper.signal(syscall.SIGSTOP)
	l.awaitCount("the work of the one that sleeps is lost", 1, countOf, "asleep", "Lost")
	l.remove(claim)
	l.awaitGone(claim)
	l.awaitCount("nobody works on the machine", 0, countOpen, "asleep")

	asleep := sleeper.logEnd()
	if err := box.Resume(); err != nil {
		l.t.Fatal(err)
	}
	sleeper.signal(syscall.SIGCONT)
	l.eventually(patience, "the work of the one that slept ends", func(context.Context) error {
		if len(sleeper.endsOf("asleep", asleep)) == 0 {
			return errors.New("it goes on")
		}
		return nil
	})
	l.eventually(patience, "the one that slept is ready again", sleeper.ready)
	if now := l.written(box); now != "" {
		l.t.Errorf("something was done to a machine that nobody held:\n%s", now)
	}
}
