// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"testing"
)

// conditionReason is what the API server demands of reasons, without the separators that nobody needs.
var conditionReason = regexp.MustCompile(`^[A-Z][A-Za-z0-9]{0,63}$`)

// TestConditionConstants reads the constants as they are written, because nothing lists them: each is named after its
// value, has one, and says what it means.
func TestConditionConstants(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "conditions.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	prefixes := map[string]string{"ConditionType": "Condition", "Reason": "Reason"}
	seen := map[string]bool{}
	counts := map[string]int{}
	ast.Inspect(file, func(node ast.Node) bool {
		spec, ok := node.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name := spec.Names[0].Name
		kind, ok := spec.Type.(*ast.Ident)
		if !ok || prefixes[kind.Name] == "" || len(spec.Values) != 1 {
			t.Errorf("%s is no typed constant", name)
			return false
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if name != prefixes[kind.Name]+value {
			t.Errorf("%s has value %q", name, value)
		}
		if !conditionReason.MatchString(value) {
			t.Errorf("%s has value %q, want CamelCase of at most 64 characters", name, value)
		}
		if spec.Doc.Text() == "" {
			t.Errorf("%s does not say what it means", name)
		}
		if seen[kind.Name+value] {
			t.Errorf("%s is there twice", name)
		}
		seen[kind.Name+value] = true
		counts[kind.Name]++
		return false
	})
	if counts["ConditionType"] < 8 || counts["Reason"] < 40 {
		t.Errorf("found %v, which is not all of them", counts)
	}
}
