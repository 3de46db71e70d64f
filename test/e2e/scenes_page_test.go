// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package e2e_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv"
)

// TestSafetyPage: every test that docs/safety.md names is there.
func TestSafetyPage(t *testing.T) {
	t.Parallel()
	root, err := devenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(root, "docs", "safety.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`([a-z0-9/-]+)\.(Test\w+)(?:/(\w+))?`).FindAllStringSubmatch(string(page), -1)
	const atLeast = 30
	if len(named) < atLeast {
		t.Errorf("the page names %d tests", len(named))
	}
	sources := map[string][]byte{}
	for _, n := range named {
		dir, test, part := n[1], n[2], n[3]
		if sources[dir] == nil {
			files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(dir), "*_test.go"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				text, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				sources[dir] = append(sources[dir], text...)
			}
		}
		if !bytes.Contains(sources[dir], []byte("func "+test+"(")) || part != "" && !bytes.Contains(sources[dir], fmt.Appendf(nil, "%q", part)) {
			t.Errorf("%s is not there", n[0])
		}
	}
}
