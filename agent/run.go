// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// Config configures an agent.
type Config struct {
	// StateDir is where it keeps its state. Empty: DefaultStateDir. Made
	// (0700) where it is missing.
	StateDir string
	// Version is shown in the report.
	Version string
	// Output gets the report. Required.
	Output io.Writer
	// Patience is how long to wait for another agent that holds the lock to
	// say who it is. 0: ten seconds.
	Patience time.Duration
}

// poll is how often a file of another process is looked at again.
const poll = 20 * time.Millisecond

// ErrNotRunning says that no agent runs in a state directory.
var ErrNotRunning = errors.New("no agent is running")

// Run is the agent. Where none runs yet in the state directory it makes or
// loads the key, prints its report and returns nil when ctx is done. Where one
// runs it prints that one's, with AlreadyRunning, and returns at once.
func Run(ctx context.Context, c Config) error {
	dir := c.dir()
	if err := prepareStateDir(dir); err != nil {
		return err
	}
	patience := c.Patience
	if patience == 0 {
		patience = 10 * time.Second
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	retry := time.NewTicker(poll)
	defer retry.Stop()
	for {
		held, err := lock(dir)
		if err != nil {
			return err
		}
		if held != nil {
			return errors.Join(c.serve(ctx, dir), held.Close())
		}
		// Whoever has the lock may still be starting, or be about to end.
		r, err := Running(dir)
		if err == nil {
			return c.print(r)
		}
		if !errors.Is(err, ErrNotRunning) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-deadline.C:
			return fmt.Errorf("wait for the agent that holds the lock of %s: it has not said who it is after %s", dir, patience)
		case <-retry.C:
		}
	}
}

// serve is the agent that runs, under the lock.
func (c Config) serve(ctx context.Context, dir string) (err error) {
	key, err := loadOrMakeKey(filepath.Join(dir, KeyFile))
	if err != nil {
		return err
	}
	r := Report{
		Version:      c.Version,
		PublicKey:    key.Public().(ed25519.PublicKey),
		PID:          os.Getpid(),
		BinaryDigest: ownDigest(),
	}
	if r.Facts, err = gatherJSON(); err != nil {
		return err
	}
	name := filepath.Join(dir, RunningFile)
	if err := writeRunning(name, r); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(name)) }()
	if err := c.print(r); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// WaitRunning returns the report of the agent that runs in the state
// directory, with AlreadyRunning set and the facts of this moment. Where none
// runs it waits until ctx is done, and then returns ErrNotRunning.
func WaitRunning(ctx context.Context, stateDir string) (Report, error) {
	dir := Config{StateDir: stateDir}.dir()
	retry := time.NewTicker(poll)
	defer retry.Stop()
	for {
		r, err := Running(dir)
		if !errors.Is(err, ErrNotRunning) {
			return r, err
		}
		select {
		case <-ctx.Done():
			return Report{}, err
		case <-retry.C:
		}
	}
}

func (c Config) dir() string {
	if c.StateDir == "" {
		return DefaultStateDir
	}
	return c.StateDir
}

func (c Config) print(r Report) error {
	b, err := r.Encode()
	if err != nil {
		return err
	}
	if _, err := c.Output.Write(b); err != nil {
		return fmt.Errorf("print report: %w", err)
	}
	return nil
}

func gatherJSON() (json.RawMessage, error) {
	b, err := json.Marshal(Gather(os.DirFS("/")))
	if err != nil {
		return nil, fmt.Errorf("encode facts: %w", err)
	}
	return b, nil
}

// ownDigest is of the binary that runs, even when its file was replaced since:
// that is what /proc/self/exe opens. "" where it cannot be read.
func ownDigest() string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}
