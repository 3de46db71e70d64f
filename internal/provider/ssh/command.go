// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// identity is who runs a script on the machine.
type identity int

const (
	asUser identity = iota // who we log in as
	asRoot                 // the same, by sudo where that is not root
)

// maxOutput bounds what a script may print.
const maxOutput = agent.MaxReportBytes + 4096

// What timeout(1) ends with: after the time has passed, and when the command
// had to be killed.
const (
	exitTimedOut = 124
	exitKilled   = 137
)

// scriptError is the failure of a script that ran.
type scriptError struct {
	exit   int
	stderr string
}

func (e *scriptError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("exit status %d", e.exit)
	}
	return fmt.Sprintf("exit status %d: %s", e.exit, e.stderr)
}

// run runs a script on the machine and returns what it printed. It ends with
// ctx by the connection, and on the machine by timeout(1), which takes all that
// the script started with it, but for what has a session of its own.
//
// The script is the input of a shell, not an argument: so the login shell, which
// may be any, has nothing to interpret. It is a function that is called in its
// last line: when the connection is cut in the middle of it, nothing of it has
// run. And it begins by printing a word, since login shells may print as well.
// Commands in it must not read from standard input.
//
// A script that runs and fails is a *scriptError in a typed error.
func (w *work) run(ctx context.Context, who identity, script string) ([]byte, error) {
	session, err := w.client.NewSession()
	if err != nil {
		return nil, w.fail(provider.ReasonUnreachable, false, err, "open session")
	}
	defer func() { _ = session.Close() }() // says EOF where it has ended
	begin := "begin-" + rand.Text()
	stdout, stderr := &boundedBuffer{limit: maxOutput}, &boundedBuffer{limit: 4096}
	session.Stdout, session.Stderr = stdout, stderr
	session.Stdin = strings.NewReader("main() {\n" + script + "\n}\necho " + begin + "; main; exit $?\n")

	sudo := who == asRoot && !w.root
	command := fmt.Sprintf("timeout -k 5 %d sh -s", w.remoteSeconds(ctx))
	if sudo {
		command = "sudo -n " + command
	}
	err = session.Run(command)
	_, out, began := bytes.Cut(stdout.kept, []byte(begin+"\n"))
	if err == nil && began && !stdout.cut {
		return out, nil
	}
	said := oneLine(string(stderr.kept))
	exit, exited := errors.AsType[*ssh.ExitError](err)
	switch {
	case exited && (exit.ExitStatus() == exitTimedOut || exit.ExitStatus() == exitKilled):
		return nil, w.fail(provider.ReasonTimedOut, false, nil, "the machine ended a command that took too long")
	case exited && sudo && !began && strings.Contains(said, "sudo:"):
		return nil, w.fail(provider.ReasonNeedsSudo, true, nil,
			"user %s is not root and may not use sudo without a password: %s", w.driver.user, said)
	case exited:
		return nil, w.fail(provider.ReasonCommandFailed, false, &scriptError{exit.ExitStatus(), said}, "a command failed on the machine")
	case err != nil:
		return nil, w.fail(provider.ReasonUnreachable, false, err, "the connection was lost during a command")
	default:
		return nil, w.fail(provider.ReasonCommandFailed, false, nil, "a command printed more than it may, or not what it should")
	}
}

// remoteSeconds is how long a command may run on the machine: what is left of
// the step.
func (w *work) remoteSeconds(ctx context.Context) int {
	left := w.timeout
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
	}
	return max(1, int(math.Ceil(left.Seconds())))
}

// boundedBuffer keeps the first bytes written to it, and drops the others.
type boundedBuffer struct {
	kept  []byte // not a bytes.Buffer: io.Copy would find its ReadFrom
	limit int
	cut   bool // some were dropped
}

func (b *boundedBuffer) Write(p []byte) (int, error) {
	keep := p[:min(len(p), b.limit-len(b.kept))]
	b.kept = append(b.kept, keep...)
	b.cut = b.cut || len(keep) < len(p)
	return len(p), nil
}
