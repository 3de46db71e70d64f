// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"fmt"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

func version(uid, version string) *v1alpha1.WorkClaim {
	return &v1alpha1.WorkClaim{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), ResourceVersion: version}}
}

// TestCopiesStandInForWhatTheyReplaced, and for nothing else: what somebody else wrote is never hidden, whatever its version looks like.
func TestCopiesStandInForWhatTheyReplaced(t *testing.T) {
	began := time.Now()
	for _, test := range []struct {
		name   string
		writes [][2]string // from which version to which
		cached string
		after  time.Duration
		want   string
	}{
		{"no write", nil, "5", 0, "5"},
		{"cache is behind", [][2]string{{"5", "7"}}, "5", 0, "7"},
		{"cache is behind two writes", [][2]string{{"5", "7"}, {"7", "9"}}, "5", 0, "9"},
		{"cache is behind one of two writes", [][2]string{{"5", "7"}, {"7", "9"}}, "7", 0, "9"},
		{"cache has caught up", [][2]string{{"5", "7"}}, "7", 0, "7"},
		{"somebody else wrote after it", [][2]string{{"5", "7"}}, "8", 0, "8"},
		{"an older copy of the cache, from before what we knew", [][2]string{{"5", "7"}}, "4", 0, "4"},
		{"somebody else wrote between two writes", [][2]string{{"5", "7"}, {"8", "9"}}, "5", 0, "5"},
		{"nothing was changed", [][2]string{{"5", "5"}}, "5", 0, "5"},
		{"it is not known to what", [][2]string{{"5", ""}}, "5", 0, "5"},
		{"long ago", [][2]string{{"5", "7"}}, "5", copiesKept + time.Second, "5"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var c copies
			for _, w := range test.writes {
				c.wrote(version("a", w[0]), version("a", w[1]), began)
			}
			if last := len(test.writes) - 1; last > 0 {
				latest(&c, version("a", test.writes[last][1]), began) // somebody has seen the last
			}
			cached := version("a", test.cached)
			if got := latest(&c, cached, began.Add(test.after)); got.ResourceVersion != test.want {
				t.Errorf("version %s, want %s", got.ResourceVersion, test.want)
			}
			if other := latest(&c, version("b", "5"), began); other.UID != "b" || other.ResourceVersion != "5" {
				t.Errorf("another object becomes %s in version %s", other.UID, other.ResourceVersion)
			}
		})
	}
}

// TestCopiesAreNotShared: who changes what it got changes nothing for others.
func TestCopiesAreNotShared(t *testing.T) {
	var c copies
	now := time.Now()
	c.wrote(version("a", "1"), version("a", "2"), now)
	latest(&c, version("a", "1"), now).Finalizers = []string{"x"}
	if got := latest(&c, version("a", "1"), now); len(got.Finalizers) > 0 {
		t.Errorf("finalizers are %v", got.Finalizers)
	}
}

// TestCopiesAreForgotten when the cache has not asked for them: their objects are gone.
func TestCopiesAreForgotten(t *testing.T) {
	var c copies
	now := time.Now()
	for i := range 5000 {
		now = now.Add(time.Second)
		c.wrote(version(fmt.Sprint(i), "1"), version(fmt.Sprint(i), "2"), now)
	}
	if len(c.by) > 2000 {
		t.Errorf("%d copies are kept", len(c.by))
	}
}

// TestPatienceIsForgotten when it is over.
func TestPatienceIsForgotten(t *testing.T) {
	var p patience
	now := time.Now()
	for i := range 5000 {
		now = now.Add(time.Second)
		p.have(types.UID(fmt.Sprint(i)), now, time.Second)
	}
	if left := p.left("4999", now.Add(400*time.Millisecond)); left != 600*time.Millisecond {
		t.Errorf("%s is left of a second", left)
	}
	if p.left("0", now) != 0 || p.left("unknown", now) != 0 || len(p.until) > 2000 {
		t.Errorf("%d are kept", len(p.until))
	}
}
