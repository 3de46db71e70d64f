// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// exitNotRunning is what the agent's report command ends with where no agent
// runs.
const exitNotRunning = 3

// start starts the agent unless one runs, and waits until it says who it is.
// The agent gets a session of its own and no file of ours, so neither the end of
// the connection nor timeout(1) ends it.
func (w *work) start(ctx context.Context) error {
	return w.within(ctx, "start", func(ctx context.Context) error {
		// A second less than the step has, so that what fails says why.
		wait := max(1, w.remoteSeconds(ctx)-1)
		out, err := w.run(ctx, asRoot, w.names()+fmt.Sprintf(`
"$agent" report --state-dir "$dir" </dev/null >/dev/null 2>&1
case $? in
0) echo running; return;;
%d) ;;
*) "$agent" report --state-dir "$dir" </dev/null >/dev/null; return 75;;
esac
umask 077
cd / || return 75
setsid nohup "$agent" --state-dir "$dir" </dev/null >"$log" 2>&1 &
"$agent" report --state-dir "$dir" --wait %ds </dev/null >/dev/null 2>&1 && echo started && return
tail -n 5 "$log" >&2
return 75`, exitNotRunning, wait))
		if err != nil {
			return w.agentFailed(err, "the agent does not start")
		}
		switch strings.TrimSpace(string(out)) {
		case "running":
			w.agent.AlreadyRunning = true
			return nil
		case "started":
			return nil
		default:
			return w.fail(provider.ReasonAgentFailed, false, nil, "the machine does not say whether the agent runs: %q", out)
		}
	})
}

// readKey asks the agent that runs, whoever started it.
func (w *work) readKey(ctx context.Context) error {
	return w.within(ctx, "report", func(ctx context.Context) error {
		out, err := w.run(ctx, asRoot, w.names()+`"$agent" report --state-dir "$dir" --wait 1s </dev/null`)
		if err != nil {
			return w.agentFailed(err, "the agent has ended")
		}
		r, err := agent.ParseReport(out)
		if err != nil {
			return w.fail(provider.ReasonAgentFailed, false, err, "what the agent says cannot be understood")
		}
		w.agent.PublicKey, w.agent.Facts = r.PublicKey, r.Facts
		w.agent.Outdated = r.BinaryDigest != w.digest
		return nil
	})
}

// agentFailed makes the agent's failure out of that of the script that ran it.
func (w *work) agentFailed(err error, message string) error {
	if e, ok := errors.AsType[*scriptError](err); ok {
		return w.fail(provider.ReasonAgentFailed, false, e, "%s", message)
	}
	return err
}
