// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package statedir makes directories for the state of local servers that go away with the process that made them,
// however it ends.
package statedir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const lockName = ".lock"

// graceWithoutLock is how old a directory without a lock must be before it counts as left behind: its maker locks it
// right after making it.
const graceWithoutLock = time.Hour

// janitorScript waits until its standard input ends, which it does when the process at the other end is gone, and
// removes the directory. It repeats because servers in it, which end at the same moment, may still write their last files.
const janitorScript = `cat >/dev/null; n=0; while [ $n -lt 100 ]; do rm -rf -- "$1" && exit 0; n=$((n+1)); sleep 0.1; done`

// Dir is a directory for state, locked by this process. Its methods are not for concurrent use.
type Dir struct {
	// Path is absolute.
	Path string

	lock  *os.File
	leash io.Closer // its end makes the janitor remove the directory
}

// New makes a directory in parent named prefix and something unique, that other users may enter but not list. parent is
// os.TempDir() when empty. It first removes those that earlier processes left there under the same prefix; onLeftover,
// which may be nil, is called with each of them before, to end what they describe. The caller ends it with Remove; if it
// dies before, the directory is removed all the same.
func New(parent, prefix string, onLeftover func(path string)) (*Dir, error) {
	if parent == "" {
		parent = os.TempDir()
	}
	parent, err := filepath.Abs(parent)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", parent, err)
	}
	sweep(parent, prefix, onLeftover)

	path, err := os.MkdirTemp(parent, prefix+"-")
	if err != nil {
		return nil, fmt.Errorf("make state directory %s: %w", prefix, err)
	}
	d := &Dir{Path: path}
	if err := d.init(); err != nil {
		return nil, errors.Join(fmt.Errorf("set up state directory %s: %w", path, err), d.Remove())
	}
	return d, nil
}

func (d *Dir) init() error {
	if err := os.Chmod(d.Path, 0o711); err != nil {
		return err
	}
	lock, err := lockFile(d.Path)
	if err != nil {
		return err
	}
	d.lock = lock
	leash, err := startJanitor(d.Path)
	if err != nil {
		return err
	}
	d.leash = leash
	return nil
}

// Join returns the path of something in the directory.
func (d *Dir) Join(elements ...string) string {
	return filepath.Join(append([]string{d.Path}, elements...)...)
}

// Remove removes the directory with all that is in it. Servers that use it must have ended before. A second call does
// nothing.
func (d *Dir) Remove() error {
	err := os.RemoveAll(d.Path)
	if d.leash != nil {
		err = errors.Join(err, d.leash.Close())
		d.leash = nil
	}
	if d.lock != nil {
		err = errors.Join(err, d.lock.Close())
		d.lock = nil
	}
	if err != nil {
		return fmt.Errorf("remove state directory %s: %w", d.Path, err)
	}
	return nil
}

// lockFile locks the directory. The lock file appears locked: a sweep that finds it unlocked knows that its owner is gone.
func lockFile(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName+".new"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, lockName)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// startJanitor starts the process that removes dir after this one is gone. It is in a session of its own, out of reach of
// an interrupt typed at the terminal, and keeps none of this process's files open.
func startJanitor(dir string) (io.Closer, error) {
	cmd := exec.Command("/bin/sh", "-c", janitorScript, "sh", dir)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start janitor: %w", err)
	}
	return &leash{stdin: stdin, cmd: cmd}, nil
}

type leash struct {
	stdin io.Closer
	cmd   *exec.Cmd
}

// Close lets the janitor go and waits for it, so that none is left as a zombie.
func (l *leash) Close() error { return errors.Join(l.stdin.Close(), l.cmd.Wait()) }

// sweep removes what dead processes left. It does not report errors: what it cannot remove belongs to somebody else.
func sweep(parent, prefix string, onLeftover func(path string)) {
	entries, err := os.ReadDir(parent)
	if err != nil {
		return
	}
	for _, entry := range entries {
		if !entry.IsDir() || !strings.HasPrefix(entry.Name(), prefix+"-") {
			continue
		}
		sweepOne(filepath.Join(parent, entry.Name()), onLeftover)
	}
}

func sweepOne(path string, onLeftover func(path string)) {
	info, err := os.Lstat(path)
	if err != nil || !ownedByUs(info) {
		return
	}
	lock, err := os.OpenFile(filepath.Join(path, lockName), os.O_RDWR, 0)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && time.Since(info.ModTime()) > graceWithoutLock {
			_ = os.RemoveAll(path)
		}
		return
	}
	defer lock.Close()
	if syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		return // its process lives
	}
	if onLeftover != nil {
		onLeftover(path)
	}
	_ = os.RemoveAll(path)
}

// ownedByUs keeps root from following what another user put into a directory that all may write to.
func ownedByUs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}
