// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/deployment"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/proc"
)

// pod is a pod of the Deployment, as near to one as a process comes. With root it is one of the image's user, sees the image's files and
// the mounted ones and nothing else, can write to none of them, and finds the API server as pods do. Without root it is a process with
// the same arguments and environment, but for paths and the way to the API server.
type pod struct {
	t       *testing.T
	plane   *devenv.ControlPlane
	image   *containerImage
	spec    corev1.PodSpec
	name    string
	dir     string // has the root file system and the logs
	env     []string
	process *proc.Process
	// health and metrics are addresses; pods have one of their own each.
	health, metrics string
}

// newPod puts the database's URL and certificates where the Deployment wants them and starts a pod.
func newPod(t *testing.T, plane *devenv.ControlPlane, c client.Client, d *database, env ...string) *pod {
	t.Helper()
	for name, data := range map[string]map[string][]byte{"bmdb-operator-database": {"url": []byte(d.pod)}, "bmdb-operator-database-tls": d.files} {
		secret := &corev1.Secret{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"}}
		secret.Name, secret.Namespace, secret.Data = name, deployment.Namespace, data
		if err := client.IgnoreNotFound(c.Delete(t.Context(), secret.DeepCopy())); err != nil {
			t.Fatal(err)
		}
		apply(t, c, secret)
	}
	return startPod(t, plane, c, env...)
}

// startPod does what a kubelet does for a pod of the Deployment that is in the cluster: it mounts what is to be mounted, runs the init
// container to its end, starts the operator, with further environment, and waits until it is ready.
func startPod(t *testing.T, plane *devenv.ControlPlane, c client.Client, env ...string) *pod {
	t.Helper()
	var specification appsv1.Deployment
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: deployment.Namespace, Name: deployment.Name}, &specification); err != nil {
		t.Fatal(err)
	}
	p := &pod{
		t: t, plane: plane, image: image.build(t), spec: specification.Spec.Template.Spec, name: deployment.Name + "-0", dir: t.TempDir(), env: env,
	}
	p.mountImage()
	for _, v := range p.spec.Volumes {
		for name, content := range readSecret(t, c, v.Secret.SecretName).Data {
			for _, m := range p.spec.Containers[0].VolumeMounts {
				if m.Name == v.Name {
					p.mount(filepath.Join(m.MountPath, name), content)
				}
			}
		}
	}
	p.mountServiceAccount()
	for _, init := range p.spec.InitContainers {
		process := p.start(&init)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := process.WaitExit(ctx); err != nil {
			t.Fatalf("run %s: %v", init.Name, err)
		}
	}
	p.startOperator()
	return p
}

func readSecret(t *testing.T, c client.Client, name string) *corev1.Secret {
	t.Helper()
	var secret corev1.Secret
	if err := c.Get(t.Context(), client.ObjectKey{Namespace: deployment.Namespace, Name: name}, &secret); err != nil {
		t.Fatal(err)
	}
	return &secret
}

// confined tells whether pods can be given what takes root.
func confined() bool { return os.Geteuid() == 0 }

func (p *pod) root() string { return filepath.Join(p.dir, "root") }

// mountImage gives the pod the image's files.
func (p *pod) mountImage() {
	p.t.Helper()
	err := filepath.WalkDir(p.image.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(p.root(), strings.TrimPrefix(path, p.image.root))
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		return os.Link(path, target)
	})
	if err != nil {
		p.t.Fatal(err)
	}
}

// mount gives the pod a file that its group may read, as the kubelet does with a volume's mode 0400 where there is an fsGroup.
func (p *pod) mount(path string, content []byte) {
	p.t.Helper()
	path = filepath.Join(p.root(), path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o440); err != nil {
		p.t.Fatal(err)
	}
	if confined() {
		if err := os.Chown(path, 0, int(*p.spec.SecurityContext.FSGroup)); err != nil {
			p.t.Fatal(err)
		}
	}
}

const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount"

// mountServiceAccount gives the pod the token of its ServiceAccount.
func (p *pod) mountServiceAccount() {
	p.t.Helper()
	token, err := deployment.Token(p.t.Context(), p.plane, deployment.Namespace, p.spec.ServiceAccountName)
	if err != nil {
		p.t.Fatal(err)
	}
	admin := p.plane.RESTConfig()
	p.mount(filepath.Join(serviceAccountDir, "token"), []byte(token))
	p.mount(filepath.Join(serviceAccountDir, "ca.crt"), admin.CAData)
	p.mount(filepath.Join(serviceAccountDir, "namespace"), []byte(deployment.Namespace))
	if confined() {
		server, err := url.Parse(admin.Host)
		if err != nil {
			p.t.Fatal(err)
		}
		p.env = append(p.env, "KUBERNETES_SERVICE_HOST="+server.Hostname(), "KUBERNETES_SERVICE_PORT="+server.Port())
		return
	}
	kubeconfig := filepath.Join(p.dir, "kubeconfig")
	config := &rest.Config{Host: admin.Host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: admin.CAData}}
	if err := devenv.WriteKubeconfig(kubeconfig, config); err != nil {
		p.t.Fatal(err)
	}
	p.env = append(p.env, "BMDB_KUBECONFIG="+kubeconfig, "BMDB_AGENT_DIR="+filepath.Join(p.root(), "usr/share/bmdb"))
}

// start starts a container. Further arguments win over its own.
func (p *pod) start(c *corev1.Container, args ...string) *proc.Process {
	p.t.Helper()
	config := proc.Config{
		Path: p.image.entrypoint, Args: append(slices.Clone(c.Args), args...), Env: append(p.environment(c), p.env...),
		Log: filepath.Join(p.dir, c.Name+".log"),
	}
	if confined() {
		config.Root, config.Dir = p.root(), "/"
		config.Credential = &syscall.Credential{
			Uid: uint32(*p.spec.SecurityContext.RunAsUser), Gid: uint32(*p.spec.SecurityContext.RunAsGroup), //nolint:gosec // IDs.
			Groups: []uint32{uint32(*p.spec.SecurityContext.FSGroup)}, //nolint:gosec // An ID.
		}
	} else {
		config.Path = filepath.Join(p.root(), config.Path)
	}
	process, err := proc.Start(config)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := process.Stop(context.Background(), syscall.SIGKILL); err != nil {
			p.t.Error(err)
		}
		if p.t.Failed() {
			p.t.Logf("the end of the log of %s:\n%s", c.Name, proc.Tail(config.Log))
		}
	})
	return process
}

// environment is what a container's spec says.
func (p *pod) environment(c *corev1.Container) (env []string) {
	p.t.Helper()
	admin := newClient(p.t, p.plane.RESTConfig())
	for _, v := range c.Env {
		value := v.Value
		switch {
		case v.ValueFrom == nil:
		case v.ValueFrom.SecretKeyRef != nil:
			value = string(readSecret(p.t, admin, v.ValueFrom.SecretKeyRef.Name).Data[v.ValueFrom.SecretKeyRef.Key])
		case v.ValueFrom.FieldRef != nil && v.ValueFrom.FieldRef.FieldPath == "metadata.name":
			value = p.name
		default:
			p.t.Fatalf("this test does not know where %s comes from", v.Name)
		}
		if !confined() {
			for _, m := range c.VolumeMounts {
				value = strings.ReplaceAll(value, m.MountPath, filepath.Join(p.root(), m.MountPath))
			}
		}
		env = append(env, v.Name+"="+value)
	}
	return env
}

// startOperator starts the operator, at ports of its own, and waits until it is ready.
func (p *pod) startOperator() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	var err error
	const attempts = 3 // somebody else may take a port
	for range attempts {
		for _, address := range []*string{&p.health, &p.metrics} {
			port, err := proc.FreePort()
			if err != nil {
				p.t.Fatal(err)
			}
			*address = fmt.Sprintf("127.0.0.1:%d", port)
		}
		p.process = p.start(&p.spec.Containers[0], "--health-probe-bind-address="+p.health, "--metrics-bind-address="+p.metrics)
		probe := p.spec.Containers[0].ReadinessProbe.HTTPGet
		if err = p.process.WaitReady(ctx, func(ctx context.Context) error { return p.probe(ctx, probe.Path) }); err == nil {
			return
		}
	}
	p.t.Fatalf("start operator: %v", err)
}

// probe asks as the kubelet does.
func (p *pod) probe(ctx context.Context, path string) error {
	status, body, err := get(ctx, "http://"+p.health+path, "")
	if err == nil && status != http.StatusOK {
		err = fmt.Errorf("%s says %d: %s", path, status, body)
	}
	return err
}

// kill ends the operator as the loss of its node does.
func (p *pod) kill() {
	p.t.Helper()
	if err := p.process.Stop(context.Background(), syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
}

// terminate asks the operator to end and sees that it does so by itself, in the time that the kubelet would give it.
func (p *pod) terminate() {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(*p.spec.TerminationGracePeriodSeconds)*time.Second)
	defer cancel()
	if err := p.process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.process.Done():
	case <-ctx.Done():
		p.t.Fatal("the kubelet would have killed the operator before it was done")
	}
	if code := p.process.Exit().ExitCode(); code != 0 {
		p.t.Errorf("the operator ended with %d: %v", code, p.process.Err())
	}
}

// get asks a server whose certificate nobody has signed, with a token if there is one.
func get(ctx context.Context, address, token string) (status int, body string, err error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}} //nolint:gosec // The operator's own certificate.
	defer transport.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return 0, "", err
	}
	if token != "" {
		request.Header.Set("Authorization", "Bearer "+token)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, string(text), err
}
