// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Some is nil if a count is above zero.
func (l *Lab) Some(ctx context.Context, query string, args ...any) error {
	n, err := l.Number(ctx, query, args...)
	if err == nil && n == 0 {
		err = errors.New("there is none")
	}
	return err
}

// Number returns the answer of a query that counts. It is safe for concurrent use.
func (l *Lab) Number(ctx context.Context, query string, args ...any) (int, error) {
	var n int
	if err := l.DB.QueryRow(ctx, query, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("ask %q: %w", query, err)
	}
	return n, nil
}

// Count is number for the test's goroutine.
func (l *Lab) Count(query string, args ...any) int {
	l.T.Helper()
	n, err := l.Number(l.T.Context(), query, args...)
	if err != nil {
		l.T.Fatal(err)
	}
	return n
}

// AwaitCount waits until a query that counts has an answer.
func (l *Lab) AwaitCount(what string, want int, query string, args ...any) {
	l.T.Helper()
	l.Eventually(Patience, what, func(ctx context.Context) error {
		n, err := l.Number(ctx, query, args...)
		if err == nil && n != want {
			err = fmt.Errorf("there are %d, want %d", n, want)
		}
		return err
	})
}

// AwaitSome waits until a query that counts finds something.
func (l *Lab) AwaitSome(what, query string, args ...any) {
	l.T.Helper()
	l.Eventually(Patience, what, func(ctx context.Context) error { return l.Some(ctx, query, args...) })
}

const (
	// CountOpen counts the works that go on for a claim ($1).
	CountOpen = "SELECT count(*) FROM work WHERE claim_key = $1 AND work_id IS NOT NULL"
	// CountOf counts the events of one kind ($2) in the history of a claim ($1).
	CountOf = "SELECT count(*) FROM work_history WHERE claim_key = $1 AND event = $2"
)

// Event is a row of the history.
type Event struct {
	Machine string // its name
	Event   string
	Fence   int64
	Pod     string // that the session is of
	At      time.Time
	Cause   string
}

// History returns what was done for a claim: by machine, in order.
func (l *Lab) History(claim string) map[string][]Event {
	l.T.Helper()
	rows, err := l.DB.Query(l.T.Context(), `
		SELECT i.name, h.event, h.fence, s.session_runtime_info, h.timestamp, COALESCE(h.failed_cause, '')
		FROM work_history h JOIN machine_identities i ON i.machine_id = h.machine_id JOIN sessions s ON s.session_id = h.session_id
		WHERE h.claim_key = $1 ORDER BY i.name, h.fence, h.phase`, claim)
	if err != nil {
		l.T.Fatal(err)
	}
	events, err := pgx.CollectRows(rows, pgx.RowToStructByPos[Event])
	if err != nil {
		l.T.Fatal(err)
	}
	history := map[string][]Event{}
	for _, e := range events {
		history[e.Machine] = append(history[e.Machine], e)
	}
	return history
}

// EventNames are what happened, without the rest.
func EventNames(events []Event) string {
	var list []string
	for _, e := range events {
		list = append(list, e.Event)
	}
	return strings.Join(list, " ")
}

// OwnerOf returns the operator that owns a claim, of those given.
func (l *Lab) OwnerOf(claim string, operators ...*Operator) (owner, other *Operator) {
	l.T.Helper()
	l.Eventually(Patience, "claim "+claim+" is owned", func(ctx context.Context) error {
		var info string
		if err := l.DB.QueryRow(ctx, `SELECT s.session_runtime_info FROM claims c JOIN sessions s ON s.session_id = c.owner_session
			WHERE c.claim_key = $1 AND s.session_ended_at IS NULL`, claim).Scan(&info); err != nil {
			return err
		}
		owner, other = nil, nil
		for _, o := range operators {
			if info == o.Name {
				owner = o
			} else {
				other = o
			}
		}
		if owner == nil {
			return fmt.Errorf("by %q", info)
		}
		return nil
	})
	return owner, other
}

// Table is the answer to a query, for people.
func (l *Lab) Table(ctx context.Context, query string, args ...any) string {
	rows, err := l.DB.Query(ctx, query, args...)
	if err != nil {
		return err.Error()
	}
	defer rows.Close()
	var text bytes.Buffer
	for _, column := range rows.FieldDescriptions() {
		fmt.Fprintf(&text, "%s | ", column.Name)
	}
	for rows.Next() {
		values, err := rows.Values()
		if err != nil {
			return err.Error()
		}
		text.WriteByte('\n')
		for _, v := range values {
			switch v := v.(type) {
			case [16]byte:
				fmt.Fprintf(&text, "%x | ", v[:4])
			case time.Time:
				fmt.Fprintf(&text, "%s | ", v.UTC().Format("15:04:05.000"))
			default:
				fmt.Fprintf(&text, "%v | ", v)
			}
		}
	}
	if err := rows.Err(); err != nil {
		return err.Error()
	}
	return text.String()
}
