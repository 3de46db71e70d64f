// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// malformed is how many objects are made that nobody should make.
const malformed = 200

// TestF9 applies objects that nobody should: specs made of random values, at and over every limit, with what SQL and shells understand in every
// text, and with references to what is not there. Each is refused, or says what is wrong; no pod ends, and other claims come to their end.
func TestF9(t *testing.T) {
	t.Parallel()
	r := newRig(t, "F9", rigOptions{pods: 2})
	r.start()
	r.fleet(0, 0)
	r.watchRules()
	work := r.feed(12)
	var accepted []*unstructured.Unstructured
	for i := range malformed {
		o := r.malformedObject(i)
		switch err := r.Client.Create(t.Context(), o); {
		case err == nil:
			accepted = append(accepted, o)
			r.struck("malformed objects accepted")
		case apierrors.IsInvalid(err), apierrors.IsBadRequest(err), apierrors.IsForbidden(err), apierrors.IsRequestEntityTooLargeError(err):
			r.struck("malformed objects refused by the API server")
		default:
			t.Errorf("object %d: %v", i, err)
		}
	}
	for _, o := range accepted {
		r.awaitSaying(o)
	}
	claims := work.stop()
	r.Eventually(testbed.Patience, "other claims come to their end", func(ctx context.Context) error {
		n, err := r.Number(ctx, "SELECT count(*) FROM claims WHERE claim_key = ANY($1) AND state = 'Complete'", claims)
		if err == nil && n != len(claims) {
			err = fmt.Errorf("%d of %d have", n, len(claims))
		}
		return err
	})
	for _, p := range r.pods {
		if err := p.process.Load().Err(); err != nil {
			t.Errorf("%s has ended: %v", p.Name, err)
		}
		if entries, _ := p.Logged(0, func(e testbed.LogEntry) bool {
			return strings.Contains(strings.ToLower(fmt.Sprint(e)), "panic")
		}); len(entries) > 0 {
			t.Errorf("%s panicked %d times, as in %v", p.Name, len(entries), entries[0])
		}
	}
	if n := r.Count("SELECT count(*) FROM work w WHERE work_id IS NOT NULL AND NOT claim_key = ANY($1)", claims); n > 0 {
		t.Errorf("%d machines are locked for malformed claims", n)
	}
	r.stopWatching()
	r.require("malformed objects accepted", "malformed objects refused by the API server")
}

// nasty are texts that something may take for more than text.
func nasty() []string {
	return []string{
		"'; DROP TABLE machines; --", "$(reboot)", "`reboot`", "a\nb", "\x01\x02", "%s%s%n", "../../../../etc/passwd", "null", "-1", "{{.}}", "🤖", strings.Repeat("x", 64), strings.Repeat("x", 5000),
		"", " ", "a'b\"c\\d", "1e309", "host:99999999", "[::1", "-oProxyCommand=reboot", "x y", "U+202E \u202e", "ok", "name-1",
	}
}

// malformedObject is an object made of random values.
func (r *rig) malformedObject(i int) *unstructured.Unstructured {
	text := func() any { return nasty()[r.random.IntN(len(nasty()))] }
	number := func() any {
		all := []int64{0, -1, 1, 2, math.MaxInt32, math.MaxInt32 + 1, math.MinInt64, math.MaxInt64, 1000001}
		return all[r.random.IntN(len(all))]
	}
	anything := func() any {
		switch r.random.IntN(4) {
		case 0:
			return text()
		case 1:
			return number()
		case 2:
			return []any{text(), text()}
		default:
			return map[string]any{fmt.Sprint(text()): text()}
		}
	}
	valid := []struct {
		kind string
		spec map[string]any
	}{
		{"Machine", map[string]any{"providerRef": map[string]any{"name": provider}, "providerID": fmt.Sprintf("odd-%d", i), "address": "192.0.2.1"}},
		{"WorkClaim", map[string]any{
			"process": "AgentStart", "mode": "Once", "machines": map[string]any{"names": []any{"not-there"}}, "key": fmt.Sprintf("odd-%d", i), "parallelism": int64(1),
			"timeoutSeconds": int64(5), "maxAttempts": int64(1), "parameters": map[string]any{"a": "b"}, "completions": int64(1),
		}},
		{"ProviderConfig", map[string]any{"type": "SSH", "ssh": map[string]any{
			"user": "root", "privateKeySecretRef": map[string]any{"name": "missing", "key": "ssh-privatekey"}, "hostKeys": map[string]any{"policy": "TrustOnFirstUse"},
		}}},
	}
	kind := valid[i%len(valid)]
	for field := range kind.spec {
		if r.random.IntN(5) > 0 {
			continue
		}
		switch was := kind.spec[field].(type) {
		case string:
			kind.spec[field] = text()
		case int64:
			kind.spec[field] = number()
		case map[string]any:
			for inner := range was {
				was[inner] = anything()
			}
		default:
			kind.spec[field] = anything()
		}
	}
	if r.random.IntN(8) == 0 {
		kind.spec[fmt.Sprint("unknown", i)] = anything()
	}
	o := &unstructured.Unstructured{Object: map[string]any{"spec": kind.spec}}
	o.SetGroupVersionKind(schema.GroupVersionKind{Group: "bmdb.dev", Version: "v1alpha1", Kind: kind.kind})
	o.SetNamespace(r.Namespace)
	o.SetName(fmt.Sprintf("odd-%d", i))
	if r.random.IntN(6) == 0 {
		o.SetName(strings.Repeat("n", 250) + fmt.Sprintf("%03d", i))
	}
	if r.random.IntN(6) == 0 {
		o.SetLabels(map[string]string{"odd": strings.Repeat("l", 63), strings.Repeat("p", 63) + "/" + strings.Repeat("k", 63): "v"})
	}
	return o
}

// awaitSaying waits until an object says in its condition Ready how it stands.
func (r *rig) awaitSaying(o *unstructured.Unstructured) {
	r.T.Helper()
	r.Eventually(testbed.Patience, o.GetKind()+" "+o.GetName()+" says how it stands", func(ctx context.Context) error {
		there := &unstructured.Unstructured{}
		there.SetGroupVersionKind(o.GroupVersionKind())
		if err := r.Client.Get(ctx, client.ObjectKeyFromObject(o), there); err != nil {
			return err
		}
		conditions, _, err := unstructured.NestedSlice(there.Object, "status", "conditions")
		if err != nil {
			return err
		}
		for _, c := range conditions {
			if m, ok := c.(map[string]any); ok && m["type"] == string(v1alpha1.ConditionReady) && m["reason"] != "" && m["message"] != "" {
				return nil
			}
		}
		return errors.New("it says nothing")
	})
}
