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
	sets    []string // tags that success sets and clears
	clears  []string
	free    bool // it was started for no claim; false where that is not known
	again   bool // it was tried before, and may have succeeded

	done chan endVerdict // for those that wait for the group
}

type endVerdict struct {
	event string
	err   error
}

const (
	// maxEnds bounds a group: more would hold the mutexes of many machines for longer than it saves commits. Half as many make one claim faster by a sixth,
	// as its ends and its starts go on side by side then, and sixteen pods with sixteen claims slower by a tenth.
	maxEnds = 64
	// company is how long a group waits for the next member while other works are open, and longCompany for how long for all of them. What a commit
	// costs hardly depends on the size of its group, and the groups of a claim come one after the other: the first of many ends must not make a group
	// of its own, and works that began together should end together.
	company     = time.Millisecond
	longCompany = 10 * time.Millisecond
	// longCommit is after what time a group is not waited for.
	longCommit = 50 * time.Millisecond
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

// commitEnds is the committer. Ends that come when it has returned find nobody, and commit alone.
func (s *Session) commitEnds(ctx context.Context) {
	const committers = 2
	commits := newTurns(committers, longCommit)
	defer commits.wait()
	for commits.next(ctx) {
		group := s.gather(ctx)
		if group == nil {
			return
		}
		commits.send(func() {
			s.commitGroup(context.WithoutCancel(ctx), group)
			s.ending.Add(-int64(len(group)))
		})
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
	patience, enough := time.NewTimer(company), time.NewTimer(longCompany)
	defer patience.Stop()
	defer enough.Stop()
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
			patience.Reset(company)
			continue
		case <-patience.C:
		case <-enough.C:
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

// endOnce commits ends once. What follows from who won, tags and the counts of claims, is written after that is known: it costs a second round
// trip where there is any, with the machines locked and the claims not yet.
func (c *Connection) endOnce(ctx context.Context, op, actor string, group []*endRequest) (map[uuid.UUID]string, error) {
	var won map[uuid.UUID]string
	machines := machinesOf(group)
	err := c.transact(ctx, op, func(ctx context.Context, tx *Tx) error {
		tx.queue("LockMachines", sqlLockForEnds, machines)
		ended, err := endWorks(ctx, tx, actor, group)
		if err != nil {
			return err
		}
		tx.recompute(machines, 1)
		ended.queueCounts(tx)
		won = ended.won
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

// ended are the works of a group that held their lock. Where nothing follows from that it is filled in when the transaction commits.
type ended struct {
	won    map[uuid.UUID]string // events by work
	counts countsOfClaims
}

// countsOfClaims are works that ended for claims, as the arrays of a statement.
type countsOfClaims struct {
	machines, works             []uuid.UUID
	pools, keys, events, causes []string
}

func (e *ended) scan(row pgx.Rows) error {
	var machine, work uuid.UUID
	var event, pool, key, cause string
	if err := row.Scan(&machine, &work, &event, &pool, &key, &cause); err != nil {
		return err
	}
	e.won[work] = event
	if c := &e.counts; key != "" {
		c.machines, c.works = append(c.machines, machine), append(c.works, work)
		c.pools, c.keys, c.events, c.causes = append(c.pools, pool), append(c.keys, key), append(c.events, event), append(c.causes, cause)
	}
	return nil
}

// queueCounts queues what the ends mean for their claims.
func (e *ended) queueCounts(tx *Tx) {
	if c := &e.counts; len(c.works) > 0 {
		tx.queue("CountEnds", sqlCountEnds, c.machines, c.works, c.pools, c.keys, c.events, c.causes)
	}
}

// endWorks ends works, with the facts that they bring and the tags that their success sets and clears. The machines are locked. The caller has
// to recompute them, and then to queue the counts.
func endWorks(ctx context.Context, tx *Tx, actor string, group []*endRequest) (*ended, error) {
	e := &ended{won: make(map[uuid.UUID]string, len(group))}
	queueEnds(tx, actor, group, e.scan)
	if !slices.ContainsFunc(group, (*endRequest).hasConsequences) {
		return e, nil
	}
	if err := tx.flush(ctx); err != nil {
		return nil, err
	}
	queueTags(tx, group, e.won)
	return e, nil
}

// hasConsequences tells that there is more to write if the work still holds its lock.
func (r *endRequest) hasConsequences() bool { return !r.free || len(r.sets)+len(r.clears) > 0 }

// queueEnds queues the ends of works, with the facts that they bring. won is given a row for each that held its lock.
func queueEnds(tx *Tx, actor string, group []*endRequest, won func(row pgx.Rows) error) {
	n := len(group)
	machines, works := make([]uuid.UUID, n), make([]uuid.UUID, n)
	processes, events, causes := make([]string, n), make([]string, n), make([]string, n)
	periods, delays := make([]int64, n), make([]int64, n)
	keys, reports := make([][]byte, n), make([][]byte, n)
	free, facts := true, false
	for i, r := range group {
		machines[i], works[i], processes[i], events[i], causes[i] = r.machine, r.work, r.process, r.event, bounded(r.cause)
		periods[i], delays[i] = r.backoff, r.delay
		keys[i], reports[i] = r.outcome.AgentPublicKey, r.outcome.HardwareReport
		free = free && r.free
		facts = facts || keys[i] != nil || reports[i] != nil
	}
	args := []any{machines, processes, works, events, causes, periods, delays, actor}
	if facts {
		args = append(args, keys, reports)
	}
	sql := sqlEndsInClaims
	switch {
	case free && facts:
		sql = sqlEndsFreeWithFacts
	case free:
		sql = sqlEndsFree
	case facts:
		sql = sqlEndsInClaimsWithFacts
	}
	tx.queueRows("EndWorks", sql, args, won)
}

// queueTags queues the tags that successes set and clear.
func queueTags(tx *Tx, group []*endRequest, won map[uuid.UUID]string) {
	var sets, clears tagsOfEnds
	for _, r := range group {
		if won[r.work] == EventFinished {
			sets.add(r.machine, r.sets)
			clears.add(r.machine, r.clears)
		}
	}
	if len(sets.tags) > 0 {
		tx.queue("SetTags", sqlSetTags, sets.machines, sets.tags)
	}
	if len(clears.tags) > 0 {
		tx.queue("ClearTags", sqlClearTags, clears.machines, clears.tags)
	}
}

// tagsOfEnds are tags of machines, as the arrays of a statement.
type tagsOfEnds struct {
	machines []uuid.UUID
	tags     []string
}

func (o *tagsOfEnds) add(machine uuid.UUID, tags []string) {
	for _, tag := range tags {
		o.machines, o.tags = append(o.machines, machine), append(o.tags, tag)
	}
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
