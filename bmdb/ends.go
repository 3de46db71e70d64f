// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// endRequest is the end of one work, as data.
type endRequest struct {
	machine uuid.UUID
	process string
	work    uuid.UUID
	event   string
	cause   string
	backoff int64 // period to record, in seconds; 0: none
	delay   int64 // for how long the machine is left alone, in seconds
	outcome Outcome
	again   bool // it was tried before, and may have succeeded

	done chan endVerdict // for those that wait for the group
}

type endVerdict struct {
	event string
	err   error
}

const (
	// maxEnds bounds a group: more would hold the mutexes of many machines for longer than it saves commits.
	maxEnds = 64
	// company is how long a group waits for the next member while other works are open. What a commit costs hardly depends on the size of its group,
	// and the groups of a claim come one after the other: the first of many ends must not make a group of its own.
	company = time.Millisecond
)

// submit hands an end to the session's committer and waits for its verdict. After the session is over it commits alone: what has
// expired but was not taken over may still end.
func (s *Session) submit(ctx context.Context, r *endRequest) (string, error) {
	r.done = make(chan endVerdict, 1)
	select {
	case s.ends <- r:
	case <-s.over:
		return s.commitAlone(ctx, r)
	case <-ctx.Done():
		return "", ctx.Err()
	}
	select {
	case v := <-r.done:
		return v.event, v.err
	case <-ctx.Done():
		// The group may still commit; the sweep of the next beat settles it.
		return "", ctx.Err()
	}
}

// commitEnds is the committer: while one group commits, the next one gathers, so a group is as large as the load makes it.
func (s *Session) commitEnds(ctx context.Context) {
	const committers = 2
	free := make(chan struct{}, committers)
	running := make(chan struct{})
	n := 0
	for {
		select {
		case <-ctx.Done():
			// Ends that come from now on find nobody here and commit alone.
			for ; n > 0; n-- {
				<-running
			}
			return
		case <-running:
			n--
			<-free
		case free <- struct{}{}:
			group := s.gather(ctx)
			if group == nil {
				<-free
				continue
			}
			n++
			go func() {
				s.commitGroup(context.WithoutCancel(ctx), group)
				s.ending.Add(-int64(len(group)))
				running <- struct{}{}
			}()
		}
	}
}

// gather waits for one end and takes the others that wait already, or come at once while works are open that neither this group nor one that is
// being committed has. It returns nil when ctx is done.
func (s *Session) gather(ctx context.Context) []*endRequest {
	var group []*endRequest
	select {
	case <-ctx.Done():
		return nil
	case r := <-s.ends:
		group = append(group, r)
	}
	patience := time.NewTimer(company)
	defer patience.Stop()
	for len(group) < maxEnds {
		select {
		case r := <-s.ends:
			group = append(group, r)
			continue
		default:
		}
		if s.Works() <= len(group)+int(s.ending.Load()) {
			break
		}
		select {
		case r := <-s.ends:
			group = append(group, r)
			continue
		case <-patience.C:
		case <-ctx.Done(): // those that it has are committed
		}
		break
	}
	s.ending.Add(int64(len(group)))
	return group
}

// commitGroup commits ends together. Stale members are told so; only an error in the data splits the group.
func (s *Session) commitGroup(ctx context.Context, group []*endRequest) {
	ctx, cancel := context.WithTimeout(ctx, s.conn.lease.forEnd())
	defer cancel()
	won, err := s.conn.end(ctx, "end", s.actor(), group)
	if err != nil && len(group) > 1 && isDataError(err) {
		for _, r := range group {
			event, err := s.commitAlone(ctx, r)
			r.done <- endVerdict{event, err}
		}
		return
	}
	for _, r := range group {
		r.done <- verdictOf(r, won, err)
	}
}

func (s *Session) commitAlone(ctx context.Context, r *endRequest) (string, error) {
	won, err := s.conn.end(ctx, "end", s.actor(), []*endRequest{r})
	v := verdictOf(r, won, err)
	return v.event, v.err
}

func verdictOf(r *endRequest, won map[uuid.UUID]string, err error) endVerdict {
	if err != nil {
		return endVerdict{err: err}
	}
	event, ok := won[r.work]
	if !ok {
		return endVerdict{err: ErrWorkLost}
	}
	return endVerdict{event: event}
}

// end commits ends in one transaction and returns how those ended that still held their lock. Members are independent. An ambiguous
// commit is resolved by reading the history of all of them; those that it does not know are ended again, which is safe, because each
// member is fenced: if the first attempt arrives after all, one of the two finds nothing to end.
func (c *Connection) end(ctx context.Context, op, actor string, group []*endRequest) (map[uuid.UUID]string, error) {
	won, err := c.endOnce(ctx, op, actor, group)
	ambiguous := errors.Is(err, ErrAmbiguous)
	if err != nil && !ambiguous {
		return nil, err
	}
	var open []*endRequest // members that may have ended earlier than they know
	for _, r := range group {
		r.again = r.again || ambiguous
		if _, ok := won[r.work]; r.again && (ambiguous || !ok) {
			open = append(open, r)
		}
	}
	if len(open) == 0 {
		return won, nil
	}
	ended, readErr := c.endsOf(ctx, open)
	if readErr != nil {
		return nil, errors.Join(err, readErr)
	}
	if ambiguous {
		won = make(map[uuid.UUID]string, len(group))
	}
	var missing []*endRequest
	for _, r := range open {
		event, ok := ended[r.work]
		switch {
		case event == r.event, event == EventCanceled && r.event == EventFinished:
			won[r.work] = event
		case !ok && ambiguous:
			missing = append(missing, r)
		}
	}
	if len(missing) == 0 {
		return won, nil
	}
	if !pause(ctx, 4) {
		return nil, err
	}
	rest, err := c.end(ctx, op, actor, missing)
	maps.Copy(won, rest)
	return won, err
}

// endOnce commits ends once. Members that were tried before are looked at before anything is written in their name: their facts may be
// there already, and changed by others since.
func (c *Connection) endOnce(ctx context.Context, op, actor string, group []*endRequest) (map[uuid.UUID]string, error) {
	var won map[uuid.UUID]string
	machines := machinesOf(group)
	again := slices.ContainsFunc(group, func(r *endRequest) bool { return r.again })
	err := c.transact(ctx, op, func(ctx context.Context, tx *Tx) error {
		won = make(map[uuid.UUID]string, len(group))
		tx.lockMachines(machines...)
		queueEnds(tx, actor, group, func(work uuid.UUID, event string) { won[work] = event })
		members := group
		if again {
			if err := tx.flush(ctx); err != nil {
				return err
			}
			members = slices.DeleteFunc(slices.Clone(group), func(r *endRequest) bool { return won[r.work] == "" })
		}
		queueOutcomes(tx, members)
		tx.recompute(machines)
		return nil
	})
	return won, err
}

func machinesOf(group []*endRequest) []uuid.UUID {
	ids := make([]uuid.UUID, 0, len(group))
	for _, r := range group {
		ids = append(ids, r.machine)
	}
	slices.SortFunc(ids, compareIDs)
	return slices.Compact(ids)
}

// queueEnds queues the ends of works. won, if not nil, is called for each that held its lock.
func queueEnds(tx *Tx, actor string, group []*endRequest, won func(work uuid.UUID, event string)) {
	n := len(group)
	machines, works := make([]uuid.UUID, n), make([]uuid.UUID, n)
	processes, events, causes := make([]string, n), make([]string, n), make([]string, n)
	periods, delays := make([]int64, n), make([]int64, n)
	for i, r := range group {
		machines[i], works[i], processes[i], events[i], causes[i] = r.machine, r.work, r.process, r.event, bounded(r.cause)
		periods[i], delays[i] = r.backoff, r.delay
	}
	tx.queueRows("EndWorks", sqlEnd, []any{machines, processes, works, events, causes, periods, delays, actor}, func(row pgx.Rows) error {
		var work uuid.UUID
		var event string
		if err := row.Scan(&work, &event); err != nil {
			return err
		}
		if won != nil {
			won(work, event)
		}
		return nil
	})
}

// queueOutcomes queues the facts that ends bring, after the ends themselves: members that were refused bring none.
func queueOutcomes(tx *Tx, group []*endRequest) {
	var agents, reports, finished outcomes
	for _, r := range group {
		if r.event != EventFinished {
			continue
		}
		finished.add(r, nil)
		if r.outcome.AgentPublicKey != nil {
			agents.add(r, r.outcome.AgentPublicKey)
		}
		if r.outcome.HardwareReport != nil {
			reports.add(r, r.outcome.HardwareReport)
		}
	}
	if len(agents.works) > 0 {
		tx.queue("SetAgents", sqlSetAgents, agents.machines, agents.works, agents.values)
		tx.queue("DropHeartbeats", sqlDropHeartbeats, agents.machines, agents.works)
	}
	if len(reports.works) > 0 {
		tx.queue("SetReports", sqlSetReports, reports.machines, reports.works, reports.values)
	}
	if len(finished.works) > 0 {
		tx.queue("SetTags", sqlSetTags, finished.machines, finished.works)
		tx.queue("ClearTags", sqlClearTags, finished.machines, finished.works)
	}
}

// outcomes are values that works bring, as the arrays of a statement.
type outcomes struct {
	machines, works []uuid.UUID
	values          [][]byte
}

func (o *outcomes) add(r *endRequest, value []byte) {
	o.machines, o.works, o.values = append(o.machines, r.machine), append(o.works, r.work), append(o.values, value)
}

// maxCause bounds what is kept of a cause: it is shown to people in statuses.
const maxCause = 1024

// bounded makes a text fit to be stored. It is what devices and tools said, whatever bytes that is: it must not keep an end from being
// written.
func bounded(cause string) string {
	cause = strings.ToValidUTF8(strings.ReplaceAll(cause, "\x00", ""), "\uFFFD")
	if len(cause) <= maxCause {
		return cause
	}
	cut := maxCause
	for cut > 0 && cause[cut]&0xC0 == 0x80 {
		cut--
	}
	return cause[:cut]
}

// endAll ends any number of works that nobody waits for, in groups, and returns how many held their lock. Those that fail are left out.
func (c *Connection) endAll(ctx context.Context, op, actor string, ends []endRequest) (total int, failed error) {
	for group := range slices.Chunk(ends, maxEnds) {
		members := make([]*endRequest, len(group))
		for i := range group {
			members[i] = &group[i]
		}
		won, err := c.end(ctx, op, actor, members)
		total += len(won)
		if err == nil {
			continue
		}
		// One that cannot be ended keeps nobody from the others.
		for _, r := range members {
			won, err := c.end(ctx, op, actor, []*endRequest{r})
			total += len(won)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("%s of machine %s: %w", op, r.machine, err))
			}
		}
	}
	return total, failed
}

// endWorksOf ends everything that is open under a session, by pages.
func (c *Connection) endWorksOf(ctx context.Context, session uuid.UUID, event, cause, actor string) error {
	for {
		var ends []endRequest
		err := c.read(ctx, "WorksOfSession", sqlWorksOfSession, []any{session, maxEnds}, func() { ends = nil }, func(row pgx.Rows) error {
			r := endRequest{event: event, cause: cause}
			err := row.Scan(&r.machine, &r.process, &r.work)
			ends = append(ends, r)
			return err
		})
		if err != nil || len(ends) == 0 {
			return err
		}
		if _, err := c.endAll(ctx, "end works of session", actor, ends); err != nil {
			return err
		}
		if event == EventLost {
			for _, r := range ends {
				c.observer.WorkTakenOver(r.process)
			}
		}
	}
}

// endsOf reads how works ended; those that have not are missing.
func (c *Connection) endsOf(ctx context.Context, group []*endRequest) (map[uuid.UUID]string, error) {
	works := make([]uuid.UUID, len(group))
	for i, r := range group {
		works[i] = r.work
	}
	ended := map[uuid.UUID]string{}
	err := c.read(ctx, "EndsOf", sqlEndsOf, []any{machinesOf(group), works}, func() { clear(ended) }, func(row pgx.Rows) error {
		var work uuid.UUID
		var event string
		err := row.Scan(&work, &event)
		ended[work] = event
		return err
	})
	return ended, err
}

// isDataError tells whether the database refused a value, so that one member may be to blame and not the group.
func isDataError(err error) bool {
	code := sqlState(err)
	return len(code) == 5 && (code[:2] == "22" || code == "23514" || code == "23503")
}

func constraintTable(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.TableName
	}
	return ""
}
