// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 contains the resources of group bmdb.dev, version v1alpha1: the Kubernetes front end of the Bare
// Metal Database.
//
// The database decides; these objects order work and show what the database knows. A namespace is a pool. The status of
// every kind is a view that may be wiped at any time and comes back by itself, so nothing is ever decided from it, with
// one exception: databaseID and revision are the evidence that an object has seen another or a newer database.
//
// Rules that hold for all kinds:
//   - Nothing is done to a machine without a WorkClaim. When in doubt nothing is done, and a condition says why.
//   - A field exists only once it is carried out.
//   - Durations are integers with their unit in the name. A pointer means that zero and absent differ.
//   - Types and reasons of conditions are the constants of this package, and no others.
//
// This package imports nothing but apimachinery. The apply configurations for server-side apply are in package
// applyconfiguration below it.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +kubebuilder:ac:output:package="applyconfiguration"
// +groupName=bmdb.dev
package v1alpha1

//go:generate ../../hack/generate.sh
