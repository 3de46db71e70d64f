// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package proc runs child processes that never outlive this one: servers of the local environment are useless without
// the program that started them, and must not stay behind when it is killed.
package proc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

// tailBytes is how much of a log goes into an error message.
const tailBytes = 4096

// Config describes a child process.
type Config struct {
	// Path is the program, Args its arguments without the program's name.
	Path string
	Args []string
	// Env is the complete environment. Nil inherits this process's.
	Env []string
	// Dir is the working directory. Empty inherits this process's.
	Dir string
	// Log is the file that stdout and stderr are appended to. Required: a server that fails to start has its reason there.
	Log string
	// Credential is the user to run as. Nil keeps this process's user.
	Credential *syscall.Credential
	// Root is the directory that the child sees as /, where Path is then looked for. Empty keeps this process's. It takes root.
	Root string
	// DeathSignal is what the child gets when this process dies, however it dies. Zero is SIGKILL.
	DeathSignal syscall.Signal
}

// Process is a running or ended child. Its methods are safe for concurrent use.
type Process struct {
	config Config
	cmd    *exec.Cmd
	done   chan struct{}
	err    error // of Wait; to be read after done
}

// Start starts a child in a process group of its own, so that an interrupt typed at the terminal reaches only the parent,
// who stops its children in order. The caller ends it with Stop.
func Start(config Config) (*Process, error) {
	log, err := os.OpenFile(config.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", filepath.Base(config.Path), err)
	}
	defer log.Close()

	if config.DeathSignal == 0 {
		config.DeathSignal = syscall.SIGKILL
	}
	cmd := exec.Command(config.Path, config.Args...)
	cmd.Env, cmd.Dir = config.Env, config.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setpgid:    true,
		Pdeathsig:  config.DeathSignal,
		Credential: config.Credential,
		Chroot:     config.Root,
	}
	p := &Process{config: config, cmd: cmd, done: make(chan struct{})}

	started := make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the *thread* that forked ends. This goroutine keeps its thread to
		// itself and waits on it for as long as the child lives.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", config.Path, err)
	}
	return p, nil
}

// Pid is the child's process ID. It means nothing once Done is closed.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says how the child ended, with the end of its log. It is nil while the child runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
	default:
		return nil
	}
	state := "exit status 0"
	if p.err != nil {
		state = p.err.Error()
	}
	return fmt.Errorf("%s ended (%s); the end of its log:\n%s", filepath.Base(p.config.Path), state, Tail(p.config.Log))
}

// Exit is how an ended child ended, nil while it runs.
func (p *Process) Exit() *os.ProcessState {
	select {
	case <-p.done:
		return p.cmd.ProcessState
	default:
		return nil
	}
}

// Signal sends a signal. That the child has ended already is not an error.
func (p *Process) Signal(signal syscall.Signal) error {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %s to %s: %w", signal, filepath.Base(p.config.Path), err)
	}
	return nil
}

// Stop sends signal and waits until the child has ended. When ctx is done first, it kills the child, waits, and returns
// an error that says so.
func (p *Process) Stop(ctx context.Context, signal syscall.Signal) error {
	if err := p.Signal(signal); err != nil {
		return err
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	if signal == syscall.SIGKILL {
		return nil
	}
	return fmt.Errorf("stop %s: did not end on %s and was killed: %w", filepath.Base(p.config.Path), signal, ctx.Err())
}

// WaitExit waits for a child that ends by itself and returns an error unless it succeeds. When ctx is done first, the child
// is killed.
func (p *Process) WaitExit(ctx context.Context) error {
	select {
	case <-p.done:
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.Stop(ctx, syscall.SIGKILL))
	}
	if p.err != nil {
		return p.Err()
	}
	return nil
}

// WaitReady calls ready until it returns nil, the child ends, or ctx is done. The error of the last two carries ready's
// last error and the end of the child's log.
func (p *Process) WaitReady(ctx context.Context, ready func(context.Context) error) error {
	const interval = 20 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return p.Err()
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w (last: %w); the end of its log:\n%s",
				filepath.Base(p.config.Path), ctx.Err(), err, Tail(p.config.Log))
		case <-ticker.C:
		}
	}
}

// Tail returns the end of a log file, or a line that says why it cannot.
func Tail(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > tailBytes {
		if _, err := f.Seek(-tailBytes, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
