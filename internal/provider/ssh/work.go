// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// work is one call of StartAgent.
type work struct {
	driver  *Driver
	machine provider.Machine
	steps   provider.Steps

	// The step that is running.
	step    string
	percent int
	timeout time.Duration // of the step
	left    time.Duration // of the timeout: what the step has not used yet

	// What the steps found, for those that follow.
	address address
	conn    net.Conn    // nil before Connect
	client  *ssh.Client // nil before Connect
	hostKey []byte      // that the host showed
	root    bool        // the user is root
	goarch  string      // the machine's
	digest  string      // of the agent for it
	agent   provider.Agent
}

// ask asks whether the work is still ours, before a side effect.
func (w *work) ask(ctx context.Context) error {
	if err := provider.ContextError(ctx, w.what()); err != nil {
		return err
	}
	if err := w.steps.Step(ctx, w.step, w.percent); err != nil {
		return fmt.Errorf("%s: %w", w.what(), err)
	}
	return nil
}

// within runs f, which does what is named, with a context that is done when the
// step's timeout has passed or ctx is done. Then the connection is closed as
// well, since what reads from it and writes to it knows no context. The error
// says which of the two it was.
func (w *work) within(ctx context.Context, doing string, f func(context.Context) error) error {
	if err := provider.ContextError(ctx, w.what()); err != nil {
		return err
	}
	timedOut := func() error {
		return w.fail(provider.ReasonTimedOut, false, nil, "%s not done in the %s that the step has", doing, w.timeout)
	}
	if w.left <= 0 {
		return timedOut()
	}
	stepCtx, cancel := context.WithTimeout(ctx, w.left)
	defer cancel()
	if w.conn != nil {
		defer w.closeWhenDone(stepCtx)()
	}
	begin := time.Now()
	err := f(stepCtx)
	w.left -= time.Since(begin)
	if stepCtx.Err() == nil {
		return err
	}
	// The connection is closed or about to be. Whatever f says, that is why.
	if err := provider.ContextError(ctx, w.what()); err != nil {
		return err
	}
	return timedOut()
}

// closeWhenDone closes the connection when ctx is done, until the function that
// it returns was called.
func (w *work) closeWhenDone(ctx context.Context) (stop func()) {
	conn := w.conn
	cancel := context.AfterFunc(ctx, func() { _ = conn.Close() }) // there is nobody to tell
	return func() { cancel() }
}

// close ends the connection and waits for what reads from it.
func (w *work) close() {
	if w.conn != nil {
		_ = w.conn.Close() // we are done with it, or it failed and said so
	}
	if w.client != nil {
		_ = w.client.Wait() // says that we closed it
	}
}

// what begins every message: what was done to which machine.
func (w *work) what() string {
	name := w.machine.Name
	if name == "" {
		name = w.machine.ProviderID
	}
	return oneLine(fmt.Sprintf("%s on %s (%s)", verbs()[w.step], name, w.machine.Address))
}

func verbs() map[string]string {
	return map[string]string{
		"Connect":    "connect to SSH",
		"CheckOwner": "check owner",
		"Upload":     "upload agent",
		"Start":      "start agent",
		"ReadKey":    "read key of agent",
	}
}

// fail makes a typed error out of what happened. err may be nil.
func (w *work) fail(reason string, person bool, err error, format string, args ...any) error {
	return &provider.Error{
		Reason:      reason,
		Message:     oneLine(w.what() + ": " + fmt.Sprintf(format, args...)),
		NeedsPerson: person,
		Err:         printable(err),
	}
}
