// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package devenv

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// BinEnv names the environment variable with the directory of the control plane's programs. Empty means bin/ of the module.
const BinEnv = "BMDB_CONTROLPLANE_BIN"

const modulePath = "github.com/bmdb-dev/bmdb-operator"

// ErrNotBuilt says that a program of the control plane is missing. The message says how to build it.
var ErrNotBuilt = errors.New("not built")

// programs are the paths of the control plane's programs.
type programs struct {
	etcd, apiserver, controllerManager, kubectl string
}

// ModuleRoot is the directory of this module's go.mod, looked for from the working directory upwards.
func ModuleRoot() (string, error) {
	working, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find module root: %w", err)
	}
	for dir := working; ; dir = filepath.Dir(dir) {
		text, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.Contains(string(text)+"\n", "module "+modulePath+"\n") {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find module root: no go.mod of %s in %s or above", modulePath, working)
		}
	}
}

// findPrograms finds the versions that hack/controlplane/go.mod names.
func findPrograms(root, dir string) (programs, error) {
	if dir == "" {
		dir = os.Getenv(BinEnv)
	}
	if dir == "" {
		dir = filepath.Join(root, "bin")
	}
	versions, err := requiredVersions(filepath.Join(root, "hack", "controlplane", "go.mod"))
	if err != nil {
		return programs{}, err
	}
	kubernetes, etcd := versions["k8s.io/kubernetes"], versions["go.etcd.io/etcd/server/v3"]
	found := programs{
		etcd:              filepath.Join(dir, "etcd-"+etcd),
		apiserver:         filepath.Join(dir, "kube-apiserver-"+kubernetes),
		controllerManager: filepath.Join(dir, "kube-controller-manager-"+kubernetes),
		kubectl:           filepath.Join(dir, "kubectl-"+kubernetes),
	}
	for _, path := range []string{found.etcd, found.apiserver, found.controllerManager, found.kubectl} {
		if _, err := os.Stat(path); err != nil {
			return programs{}, fmt.Errorf("find control plane: %s is %w, run `make controlplane` (%w)", filepath.Base(path), ErrNotBuilt, err)
		}
	}
	return found, nil
}

// requiredVersions reads the direct requirements of a go.mod.
func requiredVersions(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read versions of the control plane: %w", err)
	}
	defer f.Close()
	versions := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(strings.TrimPrefix(strings.TrimSpace(lines.Text()), "require "))
		if len(fields) == 2 && strings.HasPrefix(fields[1], "v") {
			versions[fields[0]] = fields[1]
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read versions of the control plane: %w", err)
	}
	return versions, nil
}
