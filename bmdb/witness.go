// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// What an object outside of the database may witness against it. They are spelled like the reasons of conditions.
const (
	// DatabaseChanged: the object was shown what another database knows.
	DatabaseChanged = "DatabaseChanged"
	// DatabaseRewound: the object was shown a later revision than the database has: it was restored from an older copy.
	DatabaseRewound = "DatabaseRewound"
)

// ErrDatabaseChanged is returned by StartSession when the connection string leads to another database than when the connection was opened. Open
// it again, and compare what is remembered of the former one.
var ErrDatabaseChanged = errors.New("there is another database behind the connection string than before")

// Standing says which database a row was read from, and how far its history had come.
type Standing struct {
	// Database is the database's ID.
	Database uuid.UUID
	// Revision is the row's revision, above all of former incarnations. 0: there is no row, and there was no former incarnation.
	Revision int64
}

// incarnationShift leaves room for a trillion revisions of a row in each incarnation, and for eight million incarnations.
const incarnationShift = 40

// revisionIn is a row's revision as objects show it. It grows with the row's own, and with each incarnation of the database.
func revisionIn(incarnation, rev int64) int64 { return (incarnation-1)<<incarnationShift + rev }

// queueIdentity reads who the database is, and how objects show revisions, in the snapshot of the transaction.
func (tx *Tx) queueIdentity(set func(id uuid.UUID, incarnation int64)) {
	tx.queueRows("Identity", sqlReadIdentity, nil, func(row pgx.Rows) error {
		var id uuid.UUID
		var incarnation int64
		err := row.Scan(&id, &incarnation)
		set(id, incarnation)
		return err
	})
}

// Testimony is what an object outside of the database remembers of it.
type Testimony struct {
	// Kind is one of the Kind constants, Pool and ID say of what the object is: a machine's ID, which may be empty, a claim's key, a provider's name.
	Kind, Pool, ID string
	// Cluster is where the object is.
	Cluster string
	// Database and Revision are what it was last shown. uuid.Nil: nothing; it witnesses nothing.
	Database uuid.UUID
	Revision int64
	// Final tells that it was shown the end of a claim, which no later revision takes back.
	Final bool
}

// Alarm is a testimony against the database.
type Alarm struct {
	Testimony
	// Reason is DatabaseChanged or DatabaseRewound.
	Reason string
	At     time.Time
}

// Hear compares testimonies with the database as it is now, records those that contradict it, and returns them as alarms. The objects must have
// been read before the call. While a pool has an alarm, no destructive process starts in it, and nothing for a claim whose
// object has one, until AcknowledgeDatabase. Databases that were acknowledged raise none. It needs no session. It is idempotent.
func (c *Connection) Hear(ctx context.Context, testimonies []Testimony) (alarms []Alarm, err error) {
	for page := range slices.Chunk(testimonies, hearPage) {
		h := hearing{conn: c, testimonies: page}
		if err := h.read(ctx); err != nil {
			return nil, fmt.Errorf("compare objects with the database: %w", err)
		}
		raised := h.judge()
		if err := h.raise(ctx, raised); err != nil {
			return nil, fmt.Errorf("record what speaks against the database: %w", err)
		}
		alarms = append(alarms, raised...)
	}
	return alarms, nil
}

const hearPage = 1000

// hearing is one page of Hear.
type hearing struct {
	conn         *Connection
	testimonies  []Testimony
	id           uuid.UUID
	incarnation  int64
	acknowledged map[uuid.UUID]int64 // the last incarnation
	rows         map[thingID]heardRow
	known        map[heardAlarm]bool
}

type thingID struct{ kind, pool, id string }

type heardRow struct {
	rev  int64
	over bool
}

type heardAlarm struct {
	thingID
	cluster string
}

func (h *hearing) read(ctx context.Context) error {
	machines := []uuid.UUID{}
	allPools, allIDs := []string{}, []string{}
	pools, ids := map[string][]string{KindClaim: {}, KindProvider: {}}, map[string][]string{KindClaim: {}, KindProvider: {}}
	for _, t := range h.testimonies {
		allPools, allIDs = append(allPools, t.Pool), append(allIDs, t.ID)
		if t.Kind != KindMachine {
			pools[t.Kind], ids[t.Kind] = append(pools[t.Kind], t.Pool), append(ids[t.Kind], t.ID)
		} else if id, err := uuid.Parse(t.ID); err == nil {
			machines = append(machines, id)
		}
	}
	args := []any{machines, pools[KindClaim], ids[KindClaim], pools[KindProvider], ids[KindProvider], allPools, allIDs}
	return h.conn.read(ctx, "Hear", sqlHear, args, func() {
		h.acknowledged, h.rows, h.known = map[uuid.UUID]int64{}, map[thingID]heardRow{}, map[heardAlarm]bool{}
	}, h.row)
}

// row takes a row of sqlHear.
func (h *hearing) row(row pgx.Rows) (err error) {
	var what, pool, id, cluster string
	var n int64
	var over bool
	if err := row.Scan(&what, &pool, &id, &cluster, &n, &over); err != nil {
		return err
	}
	switch kind, known := strings.CutPrefix(what, "known "); {
	case known:
		h.known[heardAlarm{thingID{kind, pool, id}, cluster}] = true
	case what == "identity":
		h.incarnation = n
		h.id, err = uuid.Parse(id)
	case what == "acknowledged":
		var database uuid.UUID
		database, err = uuid.Parse(id)
		h.acknowledged[database] = n
	default:
		h.rows[thingID{what, pool, id}] = heardRow{n, over}
	}
	return err
}

func (h *hearing) judge() (alarms []Alarm) {
	for _, t := range h.testimonies {
		pool := t.Pool
		if t.Kind == KindMachine {
			pool = "" // its ID is enough
		}
		row, incarnation := h.rows[thingID{t.Kind, pool, t.ID}], t.Revision>>incarnationShift+1
		switch {
		case t.Database == uuid.Nil:
		case t.Database != h.id && incarnation > h.acknowledged[t.Database]:
			alarms = append(alarms, Alarm{Testimony: t, Reason: DatabaseChanged})
		case t.Database != h.id || t.ID == "":
		case t.Revision > revisionIn(h.incarnation, row.rev), t.Final && !row.over && incarnation == h.incarnation:
			alarms = append(alarms, Alarm{Testimony: t, Reason: DatabaseRewound})
		}
	}
	return alarms
}

// raise records alarms that are not recorded yet, unless the database was acknowledged since they were found. It locks what an acknowledgement
// writes, and so must not do it again and again.
func (h *hearing) raise(ctx context.Context, found []Alarm) error {
	alarms := slices.DeleteFunc(slices.Clone(found), func(a Alarm) bool { return h.known[heardAlarm{thingID{a.Kind, a.Pool, a.ID}, a.Cluster}] })
	if len(alarms) == 0 {
		return nil
	}
	n := len(alarms)
	pools, kinds, ids, clusters, reasons := make([]string, n), make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	databases, revisions := make([]uuid.UUID, n), make([]int64, n)
	for i, a := range alarms {
		pools[i], kinds[i], ids[i], clusters[i], reasons[i], databases[i], revisions[i] = a.Pool, a.Kind, a.ID, a.Cluster, a.Reason, a.Database, a.Revision
	}
	return h.conn.transact(ctx, "raise alarms", func(_ context.Context, tx *Tx) error {
		tx.queue("RaiseAlarms", sqlRaiseAlarms, pools, kinds, ids, clusters, reasons, databases, revisions, h.incarnation)
		return nil
	})
}

// Alarms lists what speaks against the database, at most limit. It needs no session.
func (c *Connection) Alarms(ctx context.Context, limit int) (alarms []Alarm, err error) {
	err = c.read(ctx, "Alarms", sqlAlarms, []any{limit}, func() { alarms = nil }, func(row pgx.Rows) error {
		var a Alarm
		err := row.Scan(&a.Pool, &a.Kind, &a.ID, &a.Cluster, &a.Reason, &a.Database, &a.Revision, &a.At)
		alarms = append(alarms, a)
		return err
	})
	return alarms, wrap("list alarms", err)
}

// Doubts are what keeps a cluster from acting upon the absence of objects.
type Doubts struct {
	// Reason is DatabaseChanged or DatabaseRewound if objects of the cluster, or of the pool, speak against the database; empty: none does. Where there
	// are both it is DatabaseChanged.
	Reason string
	// SessionLives tells that the session asked for is one of this database and was not ended: the database is the one that it was started in.
	SessionLives bool
}

// Doubts reads what speaks against the database at the moment, so that a cluster ends no views in a pool whose objects are gone from it, and whether a
// session lives. It needs no session.
func (c *Connection) Doubts(ctx context.Context, cluster, pool string, session uuid.UUID) (d Doubts, err error) {
	err = c.read(ctx, "Doubts", sqlDoubts, []any{cluster, pool, session}, func() { d = Doubts{} }, func(row pgx.Rows) error {
		return row.Scan(&d.Reason, &d.SessionLives)
	})
	return d, wrap("read what speaks against the database", err)
}

// AcknowledgeDatabase says that a person has looked, and that the database as it is now counts: the databases that objects remember instead are
// forgotten, revisions grow from above all former ones, and what was held back goes on. It is audited. It returns how many alarms that ended.
func (c *Connection) AcknowledgeDatabase(ctx context.Context, actor, cause string) (ended int, err error) {
	event := AuditEvent{ID: uuid.New(), Kind: KindDatabase, Event: AuditAcknowledged, Actor: actor, Cause: cause}
	err = c.transact(ctx, "acknowledge database", func(ctx context.Context, tx *Tx) error {
		ended = 0
		tx.queue("NextIncarnation", sqlNextIncarnation)
		tx.queueIdentity(func(id uuid.UUID, _ int64) { event.Name = id.String() })
		tx.queue("AcknowledgeDatabases", sqlAcknowledgeDatabases, actor)
		tx.queueRows("EndAlarms", sqlEndAlarms, nil, func(pgx.Rows) error { ended++; return nil })
		if err := tx.flush(ctx); err != nil {
			return err
		}
		tx.audit(event)
		return nil
	})
	return ended, wrap("acknowledge database", err)
}

// WithdrawAlarms ends the alarms of one cluster, whose objects were held against this database by mistake: nothing of it is acknowledged. Objects
// that still speak against it raise theirs again. It is audited, and returns how many alarms that ended.
func (c *Connection) WithdrawAlarms(ctx context.Context, cluster, actor, cause string) (ended int, err error) {
	event := AuditEvent{ID: uuid.New(), Kind: KindDatabase, Name: c.identity.ID.String(), Event: AuditWithdrawn, Actor: actor, Cluster: cluster, Cause: cause}
	err = c.transact(ctx, "withdraw alarms", func(ctx context.Context, tx *Tx) error {
		ended = 0
		tx.queueRows("WithdrawAlarms", sqlWithdrawAlarms, []any{cluster}, func(pgx.Rows) error { ended++; return nil })
		if err := tx.flush(ctx); err != nil || ended == 0 {
			return err
		}
		tx.audit(event)
		return nil
	})
	return ended, wrap("withdraw alarms of cluster "+cluster, err)
}
