// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
)

// TestReasonsOfDrivers: drivers do not know the API and the API does not know the drivers, but their errors have the
// reasons that machines show.
func TestReasonsOfDrivers(t *testing.T) {
	api := reasons(t, "api/v1alpha1/conditions.go")
	// These are about the configuration, and ProviderConfigs have one reason for all that is wrong with it.
	api["ConfigInvalid"] = api[string(v1alpha1.ReasonInvalidConfiguration)]
	api["TypeUnknown"] = api[string(v1alpha1.ReasonInvalidConfiguration)]
	drivers := reasons(t, "internal/provider/errors.go")
	if len(drivers) == 0 {
		t.Error("found no reasons of drivers")
	}
	for reason := range drivers {
		if !api[reason] {
			t.Errorf("the API has no reason %s", reason)
		}
	}
}

// reasons returns the values of the constants of a file whose names begin with Reason.
func reasons(t *testing.T, file string) map[string]bool {
	t.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, file), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]bool{}
	ast.Inspect(parsed, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, "Reason") || len(spec.Values) != 1 {
			return true
		}
		if literal, ok := spec.Values[0].(*ast.BasicLit); ok {
			value, err := strconv.Unquote(literal.Value)
			if err != nil {
				t.Fatal(err)
			}
			values[value] = true
		}
		return false
	})
	return values
}
