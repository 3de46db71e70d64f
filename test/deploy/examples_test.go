// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// TestExamplesFitTogether sees that what the examples for Argo CD and Flux name is there: directories of this repository, the image of
// config/default, the objects that are waited for, and each other.
func TestExamplesFitTogether(t *testing.T) {
	plane, _ := newPlane(t)
	root := moduleRoot(t)
	pool := build(t, plane, "config/examples/pools/metal")
	for _, dir := range []string{"config/examples/argocd", "config/examples/flux"} {
		objects := build(t, plane, dir)
		for _, object := range objects {
			for _, path := range texts(object, []string{"spec", "source", "path"}, []string{"spec", "path"}) {
				path = strings.TrimPrefix(path, "./")
				if path == "pools/metal" { // of the users' own repository
					path = "config/examples/" + path
				}
				if _, err := os.Stat(filepath.Join(root, path, "kustomization.yaml")); err != nil {
					t.Errorf("%s: %v", object.GetName(), err)
				}
			}
			for _, image := range images(object) {
				if image != "bmdb-operator" {
					t.Errorf("%s replaces image %q, which nothing has", object.GetName(), image)
				}
			}
			for _, name := range texts(object, []string{"spec", "sourceRef", "name"}) {
				if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == "GitRepository" && o.GetName() == name }) {
					t.Errorf("%s has source %s, which is not there", object.GetName(), name)
				}
			}
			for _, dependency := range maps(object, "spec", "dependsOn") {
				if !slices.ContainsFunc(objects, func(o *unstructured.Unstructured) bool {
					return o.GetKind() == object.GetKind() && o.GetName() == dependency["name"]
				}) {
					t.Errorf("%s depends on %v, which is not there", object.GetName(), dependency)
				}
			}
			for _, check := range maps(object, "spec", "healthChecks") {
				if !slices.ContainsFunc(pool, func(o *unstructured.Unstructured) bool {
					return o.GetAPIVersion() == check["apiVersion"] && o.GetKind() == check["kind"] && o.GetName() == check["name"] && o.GetNamespace() == check["namespace"]
				}) {
					t.Errorf("%s waits for %v, which is not there", object.GetName(), check)
				}
			}
		}
	}
}

// texts returns the strings at paths of an object that has them.
func texts(object *unstructured.Unstructured, paths ...[]string) (found []string) {
	for _, path := range paths {
		if text, ok, _ := unstructured.NestedString(object.Object, path...); ok {
			found = append(found, text)
		}
	}
	return found
}

// maps returns the entries of a list of objects.
func maps(object *unstructured.Unstructured, path ...string) (found []map[string]any) {
	list, _, _ := unstructured.NestedSlice(object.Object, path...)
	for _, item := range list {
		if fields, ok := item.(map[string]any); ok {
			found = append(found, fields)
		}
	}
	return found
}

// images returns the names of the images that an Application or a Kustomization replaces.
func images(object *unstructured.Unstructured) (names []string) {
	list, _, _ := unstructured.NestedStringSlice(object.Object, "spec", "source", "kustomize", "images")
	for _, image := range list {
		name, _, _ := strings.Cut(image, "=")
		names = append(names, name)
	}
	for _, image := range maps(object, "spec", "images") {
		name, _ := image["name"].(string)
		names = append(names, name)
	}
	return names
}
