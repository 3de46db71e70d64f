// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
)

// page is a page of the documentation, whose commands are run as a reader would: in a directory with a checkout and the certificates.
type page struct {
	t    *testing.T
	text string
	dir  string
	env  []string
}

// newPage opens a page for readers who work in dir, with kubectl and the operator's program on their PATH.
func newPage(t *testing.T, name, dir string) *page {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(moduleRoot(t), "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"PATH=" + filepath.Join(dir, "bin") + ":" + os.Getenv("PATH"), "KUBECONFIG=" + filepath.Join(dir, "kubeconfig"), "HOME=" + dir}
	return &page{t: t, text: string(text), dir: dir, env: env}
}

// commands returns the lines of the blocks under a heading.
func (p *page) commands(heading string) (lines []string) {
	p.t.Helper()
	_, section, ok := strings.Cut(p.text, "\n## "+heading+"\n")
	if !ok {
		p.t.Fatalf("the page has no heading %q", heading)
	}
	section, _, _ = strings.Cut(section, "\n## ")
	inside := false
	for line := range strings.Lines(section) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside = !inside
		case inside:
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 {
		p.t.Fatalf("there is no command under %q", heading)
	}
	return lines
}

// follow runs the commands under headings.
func (p *page) follow(headings ...string) {
	p.t.Helper()
	for _, heading := range headings {
		p.run(strings.Join(p.commands(heading), ""))
	}
}

func (p *page) run(script string) string {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	shell := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
	shell.Dir, shell.Env = p.dir, p.env
	out, err := shell.CombinedOutput()
	if err != nil {
		p.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return string(out)
}

// newDesk makes the directory of a reader: a checkout, certificates, a kubeconfig, and the programs. What only a kubelet brings about is
// not waited for.
func newDesk(t *testing.T, plane *devenv.ControlPlane, d *database) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(moduleRoot(t), "config"), filepath.Join(dir, "config")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"bin", "certs"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	files := map[string]string{
		"bin/kubectl": fmt.Sprintf("#!/bin/sh\ncase \"$*\" in *' rollout status '*|*' wait '*) exit 0 ;; esac\nexec %s \"$@\"\n", plane.Kubectl()),
	}
	for name, content := range d.files {
		files["certs/"+name] = string(content)
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	img := image.build(t)
	if err := os.Symlink(filepath.Join(img.root, img.entrypoint), filepath.Join(dir, "bin", "bmdb-operator")); err != nil {
		t.Fatal(err)
	}
	if err := plane.Kubeconfig(filepath.Join(dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPages installs the operator as docs/install.md says, loses it in the middle of work, uninstalls and installs it again, and takes
// everything away as docs/uninstall.md says. At each step what is said to stay is there, and nothing hangs.
func TestPages(t *testing.T) {
	plane, err := devenv.Start(t.Context(), devenv.Options{CRDDirs: []string{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{t: t, plane: plane, client: newClient(t, plane.RESTConfig()), namespace: "metal", database: newDatabase(t)}
	desk := newDesk(t, plane, l.database)
	install, uninstall := newPage(t, "install.md", desk), newPage(t, "uninstall.md", desk)

	install.follow("3. The resource definitions, the namespace and the two Secrets", "4. The operator", "5. A pool")
	apply(t, l.client, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "monitoring"}})
	install.follow("Metrics")
	l.startInstalled()
	hang := int32(100)
	l.provider("hangs", func(s *v1alpha1.SimulatedProvider) { s.HangPercent = &hang })
	machine := l.machine("hangs", "hangs")
	l.await(machine, v1alpha1.ReasonRecorded)
	claim := l.claim("hangs", nil, "hangs")
	l.await(claim, v1alpha1.ReasonWorking)
	id := machine.Status.MachineID

	// The operator is gone, and everything else is there.
	l.pod.kill()
	uninstall.follow("Take the operator away, and keep all objects")
	if err := l.client.Get(t.Context(), client.ObjectKey{Name: deployment.Namespace}, &corev1.Namespace{}); !apierrors.IsNotFound(err) {
		t.Errorf("namespace %s is still there: %v", deployment.Namespace, err)
	}
	l.await(claim, v1alpha1.ReasonWorking) // as it was last
	if len(claim.Finalizers) == 0 {
		t.Fatal("the claim has no finalizer, so this test says nothing")
	}
	// What is deleted now waits for an operator that does not come.
	if err := l.client.Delete(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	if err := l.client.Get(t.Context(), client.ObjectKeyFromObject(claim), claim); err != nil {
		t.Fatal(err)
	}
	if out := uninstall.run("bmdb-operator release-finalizers --yes"); !strings.Contains(out, "WorkClaim metal/hangs: bmdb.dev/work, which is being deleted\nreleased 1 objects\n") {
		t.Errorf("release-finalizers says %q", out)
	}
	l.verifyGone(claim)

	// Installed again, it knows its machines.
	if err := l.client.Delete(t.Context(), machine); err != nil {
		t.Fatal(err)
	}
	install.follow("3. The resource definitions, the namespace and the two Secrets")
	install.run("kubectl apply --server-side -k bmdb")
	l.startInstalled()
	machine = l.machine("hangs", "hangs")
	l.await(machine, v1alpha1.ReasonRecorded)
	if machine.Status.MachineID != id {
		t.Errorf("the machine's ID is %s, and was %s", machine.Status.MachineID, id)
	}
	claim = l.claim("again", nil, "hangs")
	l.await(claim, v1alpha1.ReasonWorking)

	// All of it goes, in the page's order.
	for _, command := range uninstall.commands("Take everything away") {
		if strings.HasPrefix(command, "kubectl delete -k bmdb") {
			l.verifyGone(claim)
			l.pod.terminate()
		}
		uninstall.run(command)
	}
	var definitions apiextensionsv1.CustomResourceDefinitionList
	if err := l.client.List(t.Context(), &definitions); err != nil || len(definitions.Items) > 0 {
		t.Errorf("there are still %d definitions: %v", len(definitions.Items), err)
	}
	l.verifyKept(id)
}

// startInstalled starts a pod of what is installed, once the Secret has this test's address of the database.
func (l *lab) startInstalled() {
	l.t.Helper()
	secret := readSecret(l.t, l.client, "bmdb-operator-database")
	written, err := url.Parse(string(secret.Data["url"]))
	if err != nil {
		l.t.Fatal(err)
	}
	ours, err := url.Parse(l.database.pod)
	if err != nil {
		l.t.Fatal(err)
	}
	written.Host = ours.Host
	secret.Data["url"] = []byte(written.String())
	if err := l.client.Update(l.t.Context(), secret); err != nil {
		l.t.Fatal(err)
	}
	// A short lease: what was lost is taken over while the test waits.
	l.pod = startPod(l.t, l.plane, l.client, "BMDB_ALLOW_SIMULATED=true", "BMDB_STATUS_INTERVAL=1s", "BMDB_LEASE=3s")
}

// verifyGone sees that an object is there no more.
func (l *lab) verifyGone(object client.Object) {
	l.t.Helper()
	eventually(l.t, fmt.Sprintf("%s is gone", object.GetName()), func(ctx context.Context) error {
		err := l.client.Get(ctx, client.ObjectKeyFromObject(object), object)
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(fmt.Errorf("it has finalizers %q", object.GetFinalizers()), err)
	})
}

// verifyKept sees that the database has a machine and its history, whatever was deleted.
func (l *lab) verifyKept(machine string) {
	l.t.Helper()
	conn, err := pgx.Connect(l.t.Context(), l.database.url)
	if err != nil {
		l.t.Fatal(err)
	}
	defer conn.Close(l.t.Context())
	var events int
	err = conn.QueryRow(l.t.Context(), `SELECT count(*) FROM work_history JOIN machines USING (machine_id) WHERE machine_id = $1 AND event = 'Started'`, machine).Scan(&events)
	if err != nil || events != 2 {
		l.t.Errorf("the database knows of %d works that were started on the machine, want 2: %v", events, err)
	}
}
