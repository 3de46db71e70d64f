// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package deploy_test

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// imageVersion is what the image is built as.
const imageVersion = "v0.0.0-test"

// containerImage is what the Dockerfile makes, as far as that goes without an engine: the files, and what is run in them as whom.
type containerImage struct {
	root       string // the image's /
	entrypoint string
	uid, gid   uint32
}

// instruction is one of a Dockerfile.
type instruction struct{ name, rest string }

// readDockerfile returns the instructions of a Dockerfile, by stage.
func readDockerfile(path string) (stages [][]instruction, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var logical string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		if begin, more := strings.CutSuffix(line, `\`); more {
			logical += begin
			continue
		}
		logical += line
		name, rest, _ := strings.Cut(strings.TrimSpace(logical), " ")
		logical = ""
		switch {
		case name == "":
			continue
		case name == "FROM":
			stages = append(stages, nil)
		case len(stages) == 0:
			return nil, fmt.Errorf("read %s: %s comes before FROM", path, name)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], instruction{name, strings.TrimSpace(rest)})
	}
	return stages, nil
}

// buildImage runs the Dockerfile's steps for this machine's architecture: the context is copied to dir without what .dockerignore leaves
// out, and what the Dockerfile puts in /image is put in root. Modules are not downloaded: they are in the cache of whoever runs this.
func buildImage(source, dir, root string) (*containerImage, error) {
	stages, err := readDockerfile(filepath.Join(source, "Dockerfile"))
	if err != nil {
		return nil, err
	}
	if len(stages) != 2 || stages[1][0].rest != "scratch" {
		return nil, fmt.Errorf("build image: want a stage that builds and one from scratch, there are %v", stages)
	}
	if err := copyContext(source, dir); err != nil {
		return nil, err
	}
	given := map[string]string{"TARGETOS": runtime.GOOS, "TARGETARCH": runtime.GOARCH, "VERSION": imageVersion}
	env := os.Environ()
	for _, i := range stages[0] {
		switch i.name {
		case "ARG":
			name, fallback, _ := strings.Cut(i.rest, "=")
			if value, ok := given[name]; ok {
				fallback = value
			}
			env = append(env, name+"="+fallback)
		case "ENV":
			env = append(env, i.rest)
		case "RUN":
			if i.rest == "go mod download" {
				continue
			}
			if out, err := runStep(strings.ReplaceAll(i.rest, "/image", root), dir, env); err != nil {
				return nil, fmt.Errorf("build image: RUN %s: %w\n%s", i.rest, err, out)
			}
		case "FROM", "WORKDIR", "COPY":
		default:
			return nil, fmt.Errorf("build image: this test does not know what %s does", i.name)
		}
	}
	return finishImage(stages[1], root)
}

func runStep(command, dir string, env []string) ([]byte, error) {
	step := exec.Command("sh", "-c", command)
	step.Dir, step.Env = dir, env
	return step.CombinedOutput()
}

// finishImage reads the last stage.
func finishImage(stage []instruction, root string) (*containerImage, error) {
	img := &containerImage{root: root}
	for _, i := range stage[1:] {
		switch {
		case i.name == "COPY" && i.rest == "--from=build /image /":
		case i.name == "USER":
			if _, err := fmt.Sscanf(i.rest, "%d:%d", &img.uid, &img.gid); err != nil {
				return nil, fmt.Errorf("build image: USER %s is not numeric, as runAsNonRoot wants it: %w", i.rest, err)
			}
		case i.name == "ENTRYPOINT":
			img.entrypoint = strings.Trim(i.rest, `[]"`)
		default:
			return nil, fmt.Errorf("build image: this test does not know what %s %s does", i.name, i.rest)
		}
	}
	return img, nil
}

// copyContext copies what an engine would send to the builder.
func copyContext(source, dir string) error {
	text, err := os.ReadFile(filepath.Join(source, ".dockerignore"))
	if err != nil {
		return err
	}
	ignored := strings.Fields(string(text))
	return filepath.WalkDir(source, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(source, path)
		if err != nil {
			return err
		}
		target := filepath.Join(dir, name)
		switch {
		case slices.Contains(ignored, name) && entry.IsDir():
			return filepath.SkipDir
		case slices.Contains(ignored, name):
			return nil
		case entry.IsDir():
			return os.MkdirAll(target, 0o755)
		case !entry.Type().IsRegular():
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, content, 0o600)
	})
}

// TestImage builds the image and looks at what is in it.
func TestImage(t *testing.T) {
	img := image.build(t)
	if img.entrypoint != "/usr/local/bin/bmdb-operator" || img.uid == 0 || img.gid == 0 {
		t.Errorf("the image runs %s as %d:%d", img.entrypoint, img.uid, img.gid)
	}
	verifyStatic(t, filepath.Join(img.root, img.entrypoint), elfMachine(t, runtime.GOARCH))
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		verifyStatic(t, filepath.Join(img.root, "usr/share/bmdb/bmdb-agent-linux-"+arch), machine)
	}

	var files []string
	err := filepath.WalkDir(img.root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o004 == 0 {
			t.Errorf("%s is %s: the image's user cannot read it", path, info.Mode())
		}
		files = append(files, strings.TrimPrefix(path, img.root))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"/etc/group", "/etc/passwd", "/etc/ssl/certs/ca-certificates.crt", "/usr/local/bin/bmdb-operator",
		"/usr/share/bmdb/bmdb-agent-linux-amd64", "/usr/share/bmdb/bmdb-agent-linux-arm64",
	}
	if !slices.Equal(files, want) {
		t.Errorf("the image has %q, want %q", files, want)
	}

	out, err := exec.Command(filepath.Join(img.root, img.entrypoint), "version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "bmdb-operator "+imageVersion+" (") {
		t.Errorf("version says %q: %v", out, err)
	}
	out, err = exec.Command(filepath.Join(img.root, img.entrypoint), "run", "--help").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(`(default "/usr/share/bmdb")`)) {
		t.Errorf("the agents are not where the operator looks for them: %v\n%s", err, out)
	}
}

func elfMachine(t *testing.T, arch string) elf.Machine {
	t.Helper()
	machine, ok := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	if !ok {
		t.Fatalf("there is no agent for %s", arch)
	}
	return machine
}

// verifyStatic sees that a program needs nothing that the image does not have.
func verifyStatic(t *testing.T, path string, machine elf.Machine) {
	t.Helper()
	file, err := elf.Open(path)
	if err != nil {
		t.Error(err)
		return
	}
	defer file.Close()
	if file.Machine != machine {
		t.Errorf("%s is for %s, want %s", path, file.Machine, machine)
	}
	for _, p := range file.Progs {
		if p.Type == elf.PT_INTERP {
			t.Errorf("%s wants an interpreter", path)
		}
	}
	if libraries, err := file.ImportedLibraries(); err == nil && len(libraries) > 0 {
		t.Errorf("%s wants %q", path, libraries)
	}
}

// TestImageIsBuiltWithTheModulesGo sees that the Dockerfile's Go is the one that go.mod asks for.
func TestImageIsBuiltWithTheModulesGo(t *testing.T) {
	stages, err := readDockerfile(filepath.Join(moduleRoot(t), "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	_, tag, _ := strings.Cut(stages[0][0].rest, "golang:")
	image, _, _ := strings.Cut(tag, "-")
	gomod, err := os.Open(filepath.Join(moduleRoot(t), "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	defer gomod.Close()
	lines := bufio.NewScanner(gomod)
	for lines.Scan() {
		if version, ok := strings.CutPrefix(lines.Text(), "go "); ok {
			if got, want := minor(t, image), minor(t, version); got < want {
				t.Errorf("the image is built with Go %s, go.mod asks for %s", image, version)
			}
			return
		}
	}
	t.Error("go.mod names no version of Go")
}

// minor is the number that changes twice a year.
func minor(t *testing.T, version string) int {
	t.Helper()
	parts := strings.Split(version, ".")
	if len(parts) < 2 || parts[0] != "1" {
		t.Fatalf("%q is no version of Go", version)
	}
	n, err := strconv.Atoi(parts[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
