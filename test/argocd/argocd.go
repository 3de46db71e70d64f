// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package argocd computes the health of objects as Argo CD does, with the health checks that this repository ships for it.
package argocd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	lua "github.com/yuin/gopher-lua"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// Health is what Argo CD shows of an object.
type Health string

// What a health check may answer, of what Argo CD knows.
const (
	Healthy     Health = "Healthy"
	Progressing Health = "Progressing"
	Degraded    Health = "Degraded"
	Suspended   Health = "Suspended"
)

// Of returns what Argo CD is to show of an object of which kstatus says s: the same, but for what is suspended.
func Of(object *unstructured.Unstructured, s status.Status) Health {
	switch s {
	case status.CurrentStatus:
		return Healthy
	case status.FailedStatus:
		return Degraded
	case status.InProgressStatus:
		if suspended(object) {
			return Suspended
		}
	default:
	}
	return Progressing
}

// suspended tells whether the operator has taken into account that a person wants an object to be suspended.
func suspended(object *unstructured.Unstructured) bool {
	observed, _, _ := unstructured.NestedInt64(object.Object, "status", "observedGeneration")
	conditions, _, _ := unstructured.NestedSlice(object.Object, "status", "conditions")
	return observed == object.GetGeneration() && slices.ContainsFunc(conditions, func(c any) bool {
		fields, ok := c.(map[string]any)
		return ok && fields["type"] == string(v1alpha1.ConditionReady) && fields["reason"] == string(v1alpha1.ReasonSuspended)
	})
}

// checkTimeout is how long Argo CD gives a health check.
const checkTimeout = time.Second

// Checks are the health checks of the kinds of a configuration of Argo CD.
type Checks map[string]string

// Shipped returns the checks in config/argocd of the module in root.
func Shipped(root string) (Checks, error) {
	path := filepath.Join(root, "config", "argocd", "argocd-cm.yaml")
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read health checks: %w", err)
	}
	var configuration corev1.ConfigMap
	if err := yaml.UnmarshalStrict(text, &configuration); err != nil {
		return nil, fmt.Errorf("read health checks of %s: %w", path, err)
	}
	return configuration.Data, nil
}

// Health returns what Argo CD shows of an object, and the message beside it. An object that is being deleted is progressing, whatever
// its check would say.
func (c Checks) Health(object *unstructured.Unstructured) (health Health, message string, err error) {
	if object.GetDeletionTimestamp() != nil {
		return Progressing, "Pending deletion", nil
	}
	key := fmt.Sprintf("resource.customizations.health.%s_%s", object.GroupVersionKind().Group, object.GetKind())
	script, ok := c[key]
	if !ok {
		return "", "", fmt.Errorf("there is no %s", key)
	}
	return run(script, object)
}

// run runs a check as Argo CD does unless it is told otherwise: without Lua's libraries for text, numbers, files and the system, and for
// a second at most.
func run(script string, object *unstructured.Unstructured) (Health, string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable} {
		if err := state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)); err != nil {
			return "", "", fmt.Errorf("open Lua library %q: %w", name, err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	state.SetContext(ctx)
	state.SetGlobal("obj", value(state, object.Object))
	if err := state.DoString(script); err != nil {
		return "", "", fmt.Errorf("check health of %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	result, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", "", fmt.Errorf("check health of %s %s: it returns no table", object.GetKind(), object.GetName())
	}
	health := Health(lua.LVAsString(result.RawGetString("status")))
	switch health {
	case Healthy, Progressing, Degraded, Suspended:
	default:
		return "", "", fmt.Errorf("check health of %s %s: %q is no health", object.GetKind(), object.GetName(), health)
	}
	return health, lua.LVAsString(result.RawGetString("message")), nil
}

// value is JSON as Lua sees it.
func value(state *lua.LState, v any) lua.LValue {
	switch v := v.(type) {
	case bool:
		return lua.LBool(v)
	case string:
		return lua.LString(v)
	case float64:
		return lua.LNumber(v)
	case int64:
		return lua.LNumber(v)
	case []any:
		table := state.CreateTable(len(v), 0)
		for _, item := range v {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(v))
		for key, item := range v {
			table.RawSetString(key, value(state, item))
		}
		return table
	default:
		return lua.LNil
	}
}
