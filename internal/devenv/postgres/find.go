// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	// BinEnv names the environment variable with the directory of initdb and postgres. It wins over every other place.
	BinEnv = "BMDB_POSTGRES_BIN"

	// minMajor is the oldest version that the schema is made for.
	minMajor  = 15
	debianBin = "/usr/lib/postgresql/*/bin"
)

// ErrNotInstalled says that no PostgreSQL was found that can be used. The message says where it was looked for and what
// to install.
var ErrNotInstalled = errors.New("no PostgreSQL server found")

// programs are the paths of what a server needs.
type programs struct{ initdb, postgres string }

// find looks for PostgreSQL: in $BMDB_POSTGRES_BIN, then the newest of Debian's directories, then in PATH.
func find() (programs, error) {
	var tried []string
	for _, dir := range candidates() {
		found, err := programsIn(dir)
		if err == nil {
			return found, nil
		}
		tried = append(tried, err.Error())
	}
	return programs{}, fmt.Errorf("%w of version %d or newer (%s); on Debian: apt-get install postgresql, or set %s to the directory of initdb and postgres",
		ErrNotInstalled, minMajor, strings.Join(tried, "; "), BinEnv)
}

func candidates() []string {
	if dir := os.Getenv(BinEnv); dir != "" {
		return []string{dir}
	}
	dirs, err := filepath.Glob(debianBin)
	if err != nil {
		dirs = nil // only a malformed pattern, which this is not
	}
	newest, major := "", 0
	for _, dir := range dirs {
		// /usr/lib/postgresql/15/bin
		if n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir))); err == nil && n > major {
			newest, major = dir, n
		}
	}
	if newest == "" {
		return []string{""}
	}
	return []string{newest, ""}
}

// programsIn finds the programs in dir, or in PATH when dir is empty, and checks their version.
func programsIn(dir string) (programs, error) {
	var found programs
	for name, path := range map[string]*string{"initdb": &found.initdb, "postgres": &found.postgres} {
		file := name
		if dir != "" {
			file = filepath.Join(dir, name)
		}
		resolved, err := exec.LookPath(file)
		if err != nil {
			return programs{}, err
		}
		// The server finds its own files beside the program, not beside a link to it.
		if resolved, err = filepath.EvalSymlinks(resolved); err != nil {
			return programs{}, err
		}
		*path = resolved
	}
	out, err := exec.Command(found.postgres, "--version").Output()
	if err != nil {
		return programs{}, fmt.Errorf("%s --version: %w", found.postgres, err)
	}
	if major := majorVersion(string(out)); major < minMajor {
		return programs{}, fmt.Errorf("%s is too old: %s", found.postgres, strings.TrimSpace(string(out)))
	}
	return found, nil
}

// majorVersion reads "postgres (PostgreSQL) 15.18 (Debian ...)" or "... 17beta1"; 0 when it cannot.
func majorVersion(text string) int {
	_, rest, found := strings.Cut(text, "(PostgreSQL) ")
	if !found {
		return 0
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, err := strconv.Atoi(rest[:end])
	if err != nil {
		return 0
	}
	return major
}

// account is the user that the server runs as.
type account struct {
	name     string
	self     bool
	uid, gid uint32
}

// serverAccount is this process's user, or, because PostgreSQL refuses to run as root, an unprivileged one for root.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{name: "the current user", self: true}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		found, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.ParseUint(found.Uid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("read uid of user %s: %w", name, err)
		}
		gid, err := strconv.ParseUint(found.Gid, 10, 32)
		if err != nil {
			return account{}, fmt.Errorf("read gid of user %s: %w", name, err)
		}
		return account{name: name, uid: uint32(uid), gid: uint32(gid)}, nil
	}
	return account{}, errors.New("find a user for postgres, which refuses to run as root: there is neither postgres nor nobody")
}

func (a account) credential() *syscall.Credential {
	if a.self {
		return nil
	}
	return &syscall.Credential{Uid: a.uid, Gid: a.gid}
}

// own makes the server's user the owner of a file.
func (a account) own(path string) error {
	if a.self {
		return nil
	}
	if err := os.Chown(path, int(a.uid), int(a.gid)); err != nil {
		return fmt.Errorf("hand %s to user %s: %w", path, a.name, err)
	}
	return nil
}
