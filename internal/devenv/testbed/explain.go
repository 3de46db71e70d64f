// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"io"
	"os"
	"time"
)

// end says what a failed test needs to be understood. The operators have ended, each with the test that started it.
func (l *Lab) end() {
	if l.T.Failed() {
		l.Explain()
	}
	l.DB.Close()
}

// Explain writes the ends of the operators' logs and the rows that matter to the test's log.
func (l *Lab) Explain() {
	for _, o := range *l.operators {
		l.T.Logf("the end of the log of %s:\n%s", o.Name, tail(o.Log))
	}
	const timeout = 10 * time.Second // the database may be what is broken
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	for _, q := range []struct{ What, Query string }{
		{"sessions", `SELECT session_runtime_info, session_cluster, session_created_at, session_ended_at, session_end_reason FROM sessions
			ORDER BY session_created_at DESC LIMIT 20`},
		{"claims that are not over", `SELECT pool, claim_key, state, reason, message, s.session_runtime_info AS owner, s.session_ended_at, owner_epoch, active, succeeded, failed,
			skipped, completions FROM claims c LEFT JOIN sessions s ON s.session_id = c.owner_session WHERE state IN ('Running', 'Detached') ORDER BY 1, 2 LIMIT 20`},
		{"open works", `SELECT machine_id, process, claim_key, fence, attempt, started_at, deadline, step, s.session_runtime_info FROM work w
			LEFT JOIN sessions s ON s.session_id = w.session_id WHERE work_id IS NOT NULL ORDER BY started_at LIMIT 20`},
		{"the latest history", `SELECT h.timestamp, machine_id, event, claim_key, fence, attempt, s.session_runtime_info, actor, failed_cause
			FROM work_history h LEFT JOIN sessions s ON s.session_id = h.session_id ORDER BY h.timestamp DESC LIMIT 40`},
	} {
		l.T.Logf("%s:\n%s", q.What, l.Table(ctx, q.Query))
	}
}

// tail is more of a log's end than package proc shows.
func tail(path string) string {
	const bytesShown = 12 << 10
	f, err := os.Open(path)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > bytesShown {
		if _, err := f.Seek(-bytesShown, io.SeekEnd); err != nil {
			return err.Error()
		}
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
