// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package controllers shows in Kubernetes what the database knows, and brings to the database what people wrote in Kubernetes. Reconcile
// reads an object, runs phases that gather facts, and writes one status, which package projection computes. It never waits for a machine:
// work is done by package worker.
package controllers
