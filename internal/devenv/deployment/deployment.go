// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package deployment installs the operator's manifests in a control plane, so that what is tested has the rights of a deployed operator
// and no others.
package deployment

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
)

const (
	// Namespace is where config/default puts the operator.
	Namespace = "bmdb-system"
	// Name is what config/default calls the operator there, and its ServiceAccount.
	Name = "bmdb-operator"

	fieldOwner      = client.FieldOwner("deployment")
	yamlBufferBytes = 4096
)

// Build returns the objects of a kustomization of this module, as in "config/default", or of one elsewhere, by its absolute path. It
// asks kubectl, as people do.
func Build(ctx context.Context, plane *devenv.ControlPlane, dir string) ([]*unstructured.Unstructured, error) {
	if !filepath.IsAbs(dir) {
		root, err := devenv.ModuleRoot()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(root, dir)
	}
	var out, complaints bytes.Buffer
	kubectl := exec.CommandContext(ctx, plane.Kubectl(), "kustomize", dir)
	kubectl.Stdout, kubectl.Stderr = &out, &complaints
	if err := kubectl.Run(); err != nil {
		return nil, fmt.Errorf("build kustomization %s: %w: %s", dir, err, complaints.String())
	}
	if complaints.Len() > 0 {
		return nil, fmt.Errorf("build kustomization %s: it warns: %s", dir, complaints.String())
	}
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(&out, yamlBufferBytes)
	for {
		object := &unstructured.Unstructured{}
		if err := decoder.Decode(&object.Object); errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, fmt.Errorf("read objects of kustomization %s: %w", dir, err)
		}
		objects = append(objects, object)
	}
}

// Install applies config/default, whose pods nobody runs here, and config/pool in each of pools, which are namespaces that exist. It may
// be called again.
func Install(ctx context.Context, plane *devenv.ControlPlane, pools ...string) error {
	c, err := client.New(plane.RESTConfig(), client.Options{})
	if err != nil {
		return fmt.Errorf("install operator: %w", err)
	}
	operator, err := Build(ctx, plane, "config/default")
	if err != nil {
		return err
	}
	if err := apply(ctx, c, operator); err != nil {
		return err
	}
	for _, pool := range pools {
		binding, err := Build(ctx, plane, "config/pool")
		if err != nil {
			return err
		}
		for _, object := range binding {
			object.SetNamespace(pool)
		}
		if err := apply(ctx, c, binding); err != nil {
			return err
		}
	}
	return nil
}

func apply(ctx context.Context, c client.Client, objects []*unstructured.Unstructured) error {
	for _, object := range objects {
		if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), fieldOwner, client.ForceOwnership); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// Token returns a token of a ServiceAccount, as the kubelet gets it for a pod. It is good for an hour.
func Token(ctx context.Context, plane *devenv.ControlPlane, namespace, name string) (string, error) {
	c, err := kubernetes.NewForConfig(plane.RESTConfig())
	if err != nil {
		return "", fmt.Errorf("request token of %s/%s: %w", namespace, name, err)
	}
	request, err := c.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("request token of %s/%s: %w", namespace, name, err)
	}
	return request.Status.Token, nil
}

// OperatorConfig returns the configuration of the operator's ServiceAccount, which Install has made: whoever uses it may do what a
// deployed operator may. devenv.WriteKubeconfig writes it to a file for a process.
func OperatorConfig(ctx context.Context, plane *devenv.ControlPlane) (*rest.Config, error) {
	token, err := Token(ctx, plane, Namespace, Name)
	if err != nil {
		return nil, err
	}
	admin := plane.RESTConfig()
	return &rest.Config{
		Host: admin.Host, BearerToken: token, TLSClientConfig: rest.TLSClientConfig{CAData: admin.CAData},
		QPS: -1, // the server's own fairness is limit enough
	}, nil
}
