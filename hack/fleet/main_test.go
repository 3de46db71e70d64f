// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

func TestFleet(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	c := command()
	c.SetOut(&out)
	c.SetArgs([]string{"--machines", "7", "--claims", "3", "--per-rack", "4"})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	kinds, named := map[string]int{}, map[string]int{}
	for _, document := range strings.Split(out.String(), "\n---\n") {
		var claim v1alpha1.WorkClaim // every kind has the fields that are looked at
		if err := yaml.Unmarshal([]byte(document), &claim); err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		kinds[claim.Kind]++
		for _, name := range claim.Spec.Machines.Names {
			named[name]++
		}
	}
	if kinds["ProviderConfig"] != 1 || kinds["Machine"] != 7 || kinds["WorkClaim"] != 3 {
		t.Errorf("printed %v", kinds)
	}
	if len(named) != 7 {
		t.Errorf("the claims name %d machines, want each of 7 once: %v", len(named), named)
	}
}

func TestFleetRefuses(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"--machines", "0"}, {"--machines", "2", "--claims", "3"}, {"--machines", "2001", "--claims", "2"}} {
		c := command()
		c.SetOut(&bytes.Buffer{})
		c.SetErr(&bytes.Buffer{})
		c.SetArgs(args)
		if err := c.Execute(); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
