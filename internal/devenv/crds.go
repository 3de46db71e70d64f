// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package devenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
)

const (
	fieldManager    = "bmdb-devenv"
	crdKind         = "CustomResourceDefinition"
	yamlBufferBytes = 4096
	pollInterval    = 50 * time.Millisecond
)

// InstallCRDs applies the CRDs in the YAML files of directories and waits until the API server serves them. Applied again,
// it updates them. Documents of another kind are an error.
func (c *ControlPlane) InstallCRDs(ctx context.Context, dirs ...string) error {
	var crds []*unstructured.Unstructured
	for _, dir := range dirs {
		found, err := readCRDs(dir)
		if err != nil {
			return fmt.Errorf("install CRDs of %s: %w", dir, err)
		}
		crds = append(crds, found...)
	}
	if len(crds) == 0 {
		return nil
	}
	client, err := dynamic.NewForConfig(c.admin)
	if err != nil {
		return fmt.Errorf("install CRDs: %w", err)
	}
	resource := client.Resource(schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	})
	for _, crd := range crds {
		options := metav1.ApplyOptions{FieldManager: fieldManager, Force: true}
		if _, err := resource.Apply(ctx, crd.GetName(), crd, options); err != nil {
			return fmt.Errorf("install CRD %s: %w", crd.GetName(), err)
		}
	}
	for _, crd := range crds {
		if err := c.waitServed(ctx, resource, crd); err != nil {
			return fmt.Errorf("wait for CRD %s: %w", crd.GetName(), err)
		}
	}
	return nil
}

// waitServed waits until a CRD is established and in discovery: the second follows the first a moment later.
func (c *ControlPlane) waitServed(ctx context.Context, resource dynamic.ResourceInterface, crd *unstructured.Unstructured) error {
	client, err := discovery.NewDiscoveryClientForConfig(c.admin)
	if err != nil {
		return err
	}
	group, _, _ := unstructured.NestedString(crd.Object, "spec", "group")
	plural, _, _ := unstructured.NestedString(crd.Object, "spec", "names", "plural")
	versions, err := servedVersions(crd)
	if err != nil {
		return err
	}
	return wait.PollUntilContextCancel(ctx, pollInterval, true, func(ctx context.Context) (bool, error) {
		current, err := resource.Get(ctx, crd.GetName(), metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		if !isTrue(current, "Established") {
			return false, nil
		}
		for _, version := range versions {
			list, err := client.ServerResourcesForGroupVersion(schema.GroupVersion{Group: group, Version: version}.String())
			if err != nil || !contains(list, plural) {
				return false, nil //nolint:nilerr // not served yet
			}
		}
		return true, nil
	})
}

func servedVersions(crd *unstructured.Unstructured) ([]string, error) {
	versions, _, err := unstructured.NestedSlice(crd.Object, "spec", "versions")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, version := range versions {
		fields, ok := version.(map[string]any)
		if !ok {
			return nil, errors.New("spec.versions has an entry that is no object")
		}
		name, _, _ := unstructured.NestedString(fields, "name")
		if served, _, _ := unstructured.NestedBool(fields, "served"); served {
			names = append(names, name)
		}
	}
	return names, nil
}

func isTrue(object *unstructured.Unstructured, condition string) bool {
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	for _, c := range conditions {
		if fields, ok := c.(map[string]any); ok && fields["type"] == condition {
			return fields["status"] == string(metav1.ConditionTrue)
		}
	}
	return false
}

func contains(list *metav1.APIResourceList, plural string) bool {
	for i := range list.APIResources {
		if list.APIResources[i].Name == plural {
			return true
		}
	}
	return false
}

func readCRDs(dir string) ([]*unstructured.Unstructured, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var crds []*unstructured.Unstructured
	for _, entry := range entries {
		if extension := filepath.Ext(entry.Name()); extension != ".yaml" && extension != ".yml" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		found, err := decodeCRDs(text)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", entry.Name(), err)
		}
		crds = append(crds, found...)
	}
	return crds, nil
}

func decodeCRDs(text []byte) ([]*unstructured.Unstructured, error) {
	var crds []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), yamlBufferBytes)
	for {
		crd := &unstructured.Unstructured{}
		if err := decoder.Decode(&crd.Object); errors.Is(err, io.EOF) {
			return crds, nil
		} else if err != nil {
			return nil, err
		}
		if len(crd.Object) == 0 {
			continue // an empty document
		}
		if crd.GetKind() != crdKind {
			return nil, fmt.Errorf("want a %s, found a %s", crdKind, crd.GetKind())
		}
		crds = append(crds, crd)
	}
}
