// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/devtest"
)

type schema = apiextensionsv1.JSONSchemaProps

// readCRDs returns the generated CRDs by kind.
func readCRDs(t *testing.T) map[string]*apiextensionsv1.CustomResourceDefinition {
	t.Helper()
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(root, "config/crd/bases/*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	crds := map[string]*apiextensionsv1.CustomResourceDefinition{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		crd := &apiextensionsv1.CustomResourceDefinition{}
		if err := yaml.UnmarshalStrict(text, crd); err != nil {
			t.Fatalf("parse %s: %v", file, err)
		}
		crds[crd.Spec.Names.Kind] = crd
	}
	if len(crds) != 3 {
		t.Fatalf("CRDs are %v, want 3", slices.Collect(maps.Keys(crds)))
	}
	return crds
}

// walk calls visit for a schema and all below it. Items have "[]" at the end of their path, values of maps ".*".
func walk(path string, s *schema, visit func(path string, s *schema)) {
	visit(path, s)
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		child := s.Properties[name]
		walk(strings.TrimPrefix(path+"."+name, "."), &child, visit)
	}
	if s.Items != nil {
		walk(path+"[]", s.Items.Schema, visit)
	}
	if s.AdditionalProperties != nil {
		walk(path+".*", s.AdditionalProperties.Schema, visit)
	}
}

// TestSchemaIsBounded holds the conventions that a schema can break: everything has a bound, every list says how it is
// merged, numbers are integers of a known width.
func TestSchemaIsBounded(t *testing.T) {
	for kind, crd := range readCRDs(t) {
		version := crd.Spec.Versions[0]
		if crd.Spec.Scope != apiextensionsv1.NamespaceScoped || !slices.Equal(crd.Spec.Names.Categories, []string{"bmdb"}) {
			t.Errorf("%s: scope %s and categories %v, want Namespaced and bmdb", kind, crd.Spec.Scope, crd.Spec.Names.Categories)
		}
		if version.Subresources == nil || version.Subresources.Status == nil {
			t.Errorf("%s: no status subresource", kind)
		}
		for _, part := range []string{"spec", "status"} {
			s := version.Schema.OpenAPIV3Schema.Properties[part]
			walk(part, &s, func(path string, s *schema) {
				for _, problem := range unbounded(s) {
					t.Errorf("%s: %s %s", kind, path, problem)
				}
			})
		}
	}
}

func unbounded(s *schema) []string {
	var problems []string
	if s.Description == "" && s.Properties == nil && s.Type != "string" {
		problems = append(problems, "has no description")
	}
	switch s.Type {
	case "string":
		if s.MaxLength == nil && s.Enum == nil && s.Format != "date-time" {
			problems = append(problems, "has no greatest length")
		}
	case "array":
		if s.MaxItems == nil {
			problems = append(problems, "has no greatest number of items")
		}
		if s.XListType == nil {
			problems = append(problems, "does not say how it is merged")
		}
	case "integer":
		if s.Format != "int32" && s.Format != "int64" {
			problems = append(problems, "has format "+s.Format)
		}
	case "object":
		if s.AdditionalProperties != nil && s.MaxProperties == nil {
			problems = append(problems, "has no greatest number of entries")
		}
		if s.XPreserveUnknownFields != nil {
			problems = append(problems, "keeps unknown fields")
		}
	case "boolean":
	default:
		problems = append(problems, "is of type "+s.Type)
	}
	if s.Nullable {
		problems = append(problems, "may be null")
	}
	return problems
}

// TestEveryRuleIsTried fails for a rule of the schema that no case of this package breaks.
func TestEveryRuleIsTried(t *testing.T) {
	var wants []string
	for _, cases := range [][]createCase{machineCreateCases(), workClaimCreateCases(), selectionCreateCases(), providerConfigCreateCases()} {
		for _, tc := range cases {
			wants = append(wants, tc.want)
		}
	}
	for _, cases := range [][]updateCase{machineUpdateCases(), workClaimUpdateCases(), namesUpdateCases(), providerConfigUpdateCases()} {
		for _, tc := range cases {
			wants = append(wants, tc.want)
		}
	}
	tried := func(message string) bool {
		return slices.ContainsFunc(wants, func(want string) bool { return want != "" && strings.Contains(message, want) })
	}
	for kind, crd := range readCRDs(t) {
		walk("", crd.Spec.Versions[0].Schema.OpenAPIV3Schema, func(path string, s *schema) {
			for _, rule := range s.XValidations {
				if rule.Message == "" {
					t.Errorf("%s: rule %q at %q has no message", kind, rule.Rule, path)
				}
				if !tried(rule.Message) {
					t.Errorf("%s: no case breaks %q at %q", kind, rule.Message, path)
				}
			}
		})
	}
}

// TestBounds sets each field of each spec to its least and greatest value, which are accepted, and one beyond, which is
// refused, and leaves out each one that is required. The bounds are those of the schema, so that a field cannot be forgotten; that there are any is the matter of
// TestSchemaIsBounded.
func TestBounds(t *testing.T) {
	c := newClient(t)
	namespace := devtest.Namespace(t)
	crds := readCRDs(t)
	for _, base := range []string{fullMachine, fullWorkClaim, fullSSH, fullSimulated} {
		u := object(t, base)
		spec := crds[u.GetKind()].Spec.Versions[0].Schema.OpenAPIV3Schema.Properties["spec"]
		u.SetNamespace(namespace)
		walk("spec", &spec, func(path string, s *schema) {
			if !hasParent(u.Object, path) {
				return
			}
			for _, name := range s.Required {
				if _, found, _ := unstructured.NestedFieldNoCopy(u.Object, strings.Split(path, ".")...); !found {
					continue
				}
				t.Run(fmt.Sprintf("%s/%s/without %s", u.GetName(), path, name), func(t *testing.T) {
					changed := u.DeepCopy()
					unset(path+"."+name)(t, changed)
					verify(t, c.Create(t.Context(), changed, client.DryRunAll), path+"."+name+": Required value")
				})
			}
			for _, b := range boundsOf(s) {
				t.Run(fmt.Sprintf("%s/%s/%s", u.GetName(), path, b.name), func(t *testing.T) {
					changed := u.DeepCopy()
					put(t, changed, path, b.value)
					verify(t, c.Create(t.Context(), changed, client.DryRunAll), map[bool]string{true: "", false: path}[b.valid])
				})
			}
		})
	}
}

// hasParent says whether the object has the object that a field is in, with the latter a member of no list or map.
func hasParent(object map[string]any, path string) bool {
	if strings.Contains(path, "[]") || strings.Contains(path, "*") {
		return false
	}
	fields := strings.Split(path, ".")
	for _, f := range fields[:len(fields)-1] {
		child, ok := object[f].(map[string]any)
		if !ok {
			return false
		}
		object = child
	}
	return true
}

// bound is a value at the edge of what a field may have, or beyond.
type bound struct {
	name  string
	value any
	valid bool
}

func boundsOf(s *schema) []bound {
	var bounds []bound
	add := func(name string, value any, valid bool) { bounds = append(bounds, bound{name, value, valid}) }
	switch s.Type {
	case "string":
		if s.Enum != nil {
			add("of no enum", "Nonsense", false)
			break
		}
		add("shortest", strings.Repeat("a", int(*s.MinLength)), true)
		add("shorter", strings.Repeat("a", int(*s.MinLength)-1), false)
		add("longest", strings.Repeat("a", int(*s.MaxLength)), true)
		add("longer", strings.Repeat("a", int(*s.MaxLength)+1), false)
		add("number", int64(1), false)
	case "integer":
		if s.Minimum != nil {
			add("least", int64(*s.Minimum), true)
			add("less", int64(*s.Minimum)-1, false)
		}
		if s.Maximum != nil {
			add("greatest", int64(*s.Maximum), true)
			add("greater", int64(*s.Maximum)+1, false)
		}
		add("text", "1", false)
		add("fraction", 1.5, false)
	case "boolean":
		add("text", "true", false)
	case "array":
		add("none", []any{}, *s.MinItems == 0)
		items := make([]any, *s.MaxItems+1)
		for i := range items {
			items[i] = fmt.Sprintf("item-%d", i)
		}
		if s.Items.Schema.Type == "string" {
			add("most", items[:*s.MaxItems], true)
			add("more", items, false)
		}
	case "object":
		add("text", "text", false)
	}
	return bounds
}
