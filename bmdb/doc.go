// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package bmdb is the Bare Metal Database: the source of truth about a fleet of machines, and the protocol by which any number of
// programs share the work on it. It needs a CockroachDB (24.3 or newer) or a PostgreSQL (15 or newer) and nothing else; it knows
// nothing of Kubernetes.
//
//	conn, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: url, ComponentName: "rebooter"}}).Open(true)
//	session, err := conn.StartSession(ctx)
//	work, err := session.Work(ctx, "Reboot", retrieve)   // one transaction: find a machine, lock it
//	err = reboot(work.Context(), work.Machine)           // side effects, under the lock
//	err = work.Finish(ctx, commit)                       // one transaction: result and release
//
// # Three phases
//
// Retrieval finds a machine that the database says needs a process and locks (machine, process) under the program's session, in one
// transaction. Work is the side effects, while the lock is held, and never inside of a transaction. Commit releases the lock and
// writes what was found or made, in one transaction, and is refused if the lock is no longer ours. The first and the last may be tried
// any number of times; that is why they touch nothing but the database.
//
// # What is promised
//
//   - I1 Exclusion. At most one work holds (machine, slot) at any time. The slot is the process's name, or a name that processes share
//     when they must not meet. A partial unique index says so (work_slot), not a clever SELECT.
//   - I2 Fencing. An end succeeds only if its work ID still is in the work row at that moment, and every takeover writes that row. No
//     clock and no session row take part: a worker whose lease ran out but whom nobody replaced may still commit what it did.
//   - I3 One end. A work ends once, as Finished, Failed, Canceled, Lost or Released: the history's primary key is (machine, work,
//     phase).
//   - I4 Nothing half. Lock, tags, backoff, counts, history and eligibility change together.
//   - I5 Locks die with their owner. A session that misses its deadline is ended by any other program, its works are Lost, and their
//     machines are evaluated again, within twice the lease. One that closes hands over at once. The contexts of a lost session's works
//     are cancelled before anyone else can start there, as long as the program runs and clocks can be trusted in their rate.
//   - I6 Once means once. Where a claim may finish a machine once, a row of its own (claim_machines.finished_work_id) says so.
//   - I7 Limits are exact at every start. The row that a start locks is the row that it is judged by.
//   - I8 Liveness. Every eligible machine is worked on once faults heal; nothing but the recompute decides what is ready, and every
//     transition ends with it, so no transition parks a machine.
//
// # Order
//
// Every transaction that starts or ends work, holds, or changes a fact about a machine first writes the machine's machine_state row
// (rev = rev + 1); where ends are data, at READ COMMITTED, it first locks that row, and writes it with the facts that it recomputes. That row is the machine's mutex, its change feed, and, after a start, the fencing number for hardware. Locks are taken in
// this order, each by ascending key: sessions, providers, machine_state, work, tags, claims, limit slots. A start locks its claim first and after it only
// what it can skip (SKIP LOCKED), so the two orders cannot meet in a cycle. What a closure does in another order may deadlock; the
// database breaks it and the loop tries again.
//
// Facts are derived from the tags, and work rows from the facts, in statements of their own after the one that wrote the tags: a statement
// does not see what it writes itself. Written last, the revision would let two transactions each miss the other's tag and park
// the machine for ever.
//
// # Isolation
//
// On PostgreSQL, ends that are data and batch starts run at READ COMMITTED: after it waited for a row, a statement goes on with that row's
// newest version. Closures run at REPEATABLE READ, where a mutex is written and never only locked: a locked row is no conflict there, and a
// second transaction would go on with its old snapshot. On CockroachDB everything is SERIALIZABLE. Rows that a decision reads and does
// not write, and why that is safe:
//
//   - sessions and session_leases, at a gate. The identity row is share-locked, and a session's end writes it, so a start comes strictly before
//     or after. The lease is only read: one that runs out meanwhile is still alive, because only a reaper's write ends a session.
//   - processes, at a start. A start evaluates the definition that its statement sees. A definition that changes meanwhile may be missed by
//     what is under way; the second pass over the fleet begins when all of that is over.
//   - machine_state, at a batch start, is locked first and then written: its facts and hold are those of the newest version.
//   - work rows of the same slot, at a start: they are written only under the machine's mutex. Where a statement's snapshot is older than
//     the lock, the index work_slot answers, and the statement is tried again.
//   - claim_machines, at a start: ends write it under the machine's mutex, and starts of one claim follow each other by the claim's row. What a start
//     still misses, the end finds: a second success is turned into Canceled.
//   - claims, at an end, is updated in the same statement. Its mode never changes.
//   - limits, at a start: whether a provider has a limit at all. Slots decide. A limit that is introduced has none open until every start that may
//     not have seen it is over; then the works that go on get slots of their own, and what the limit leaves is opened.
//   - sessions, when a claim is taken over: whether its owner lives is read before, and the takeover is a compare-and-set on the epoch that was read
//     with it. Asked in the statement that writes, it would be answered from a snapshot in which the new owner's session is not there yet.
//   - machines, work and claim_machines, when a review ends a claim or says why it waits: plain reads, out of date a moment later like any. The end
//     itself is a compare-and-set on owner, epoch, state, that no work goes on, and the row's revision: what was raised meanwhile counts.
//   - database_alarms, at a start: one that is recorded meanwhile may be missed by what is under way. Programs that show objects hold all of them against
//     the database before they start anything under a new session, and a database that was exchanged or restored knows no session of before.
//   - sessions, when a managing role passes: a cluster that comes back at that moment finds the role taken, under the mutex of what is managed.
//   - machine_identities and machine_views, at a registration: unique indexes answer a race, and the other party is then seen. That one box is not two
//     rows in two pools no index says: new machines of a provider's name wait for each other at a row of providers.
//
// # Eligibility
//
// A process is a row: facts that it requires and forbids, tags that its success sets and clears, as they were when the work began: a start
// hands them to the work. That predicate stands in one place (eligibleNow, eligibleLater), of which the recompute, the starts, explanation and gauges are made. Time takes part as a fact that comes
// (AgentUnresponsive), and as not_before of a row that waits. A start from the ready index evaluates the predicate again on
// the locked rows: a ready row that is out of date starts nothing. The general form (Session.Work) leaves the predicate to its
// caller, but not the hold, the slot and the limit.
//
// # Claims
//
// A claim is a row for ever, and a row for each machine that it tried. One session at a time owns it and alone retrieves for it, so that
// others do not load the database, and there is one walk over the machines, whose place the owner keeps. Candidates are read before the
// start, in one of four shapes that counts bounded at a thousand choose: by names, all of the few that are ready, by a narrow label, by pages
// of the many that are ready. Who wants a few more has a glance at a few first, from a random place on. A start locks the claim's row for its room and adds the winners to its count; each end subtracts what its
// work row returns, whoever ends it. Why nothing can be started is the class of each selected machine: the gates of a start in their order,
// made of the same fragments.
//
// # Limits
//
// A start takes a slot that is open. Used slots and open ones are together never more than the limit; where more works go on than a lowered limit
// allows, no slot is open until enough of them have ended, and a chore opens what came free.
//
// # What others show
//
// Whatever is shown has a revision. Revisions that were not spread yet are found by partial indexes and copied to a row for each cluster that has
// a view; a cluster acknowledges the revision that it showed, so what changed meanwhile stays pending. There is no watermark, of time or of
// a sequence: transactions commit in another order than they begin.
//
// # Views and roles
//
// Each cluster may have one object, a view, for a machine, claim or provider. One of the views manages: its spec is in the row. The role is a flag of the view's
// row, written under the mutex of what is managed, and passes in one statement: when the managing view is detached, the next that is attached
// takes it; when the manager's cluster has had no session for a time, or a person says so, TakeOverRoles passes it. Suspension and
// limits are kept per view, and count from all.
//
// # When the database itself is wrong
//
// A database has an ID and an incarnation, and objects outside of it remember the ID and the revision that they were last shown (Standing). A database
// that is another, or has not reached that revision, was exchanged or restored from an older copy: Hear records an alarm. While a pool has one, no
// destructive process starts there, and nothing for a claim whose object has one. AcknowledgeDatabase raises the incarnation, which is
// the upper part of every revision, so that revisions go on from above all former ones.
//
// # Liveness of sessions
//
// A session has an identity row, written at its start and end, and a lease row, written by nothing but the beat, over a connection of its own.
// The holder trusts its session until the time before its last good beat was sent, plus the lease, minus a margin, on a clock that
// counts suspension; then everything under it is cancelled. A reaper ends a session only if its deadline is over by a grace, and the reaper itself
// has seen it unchanged for half a lease while the database answered. See type lease for the arithmetic.
//
// # Commits that nobody knows the outcome of
//
// When a connection breaks while COMMIT is under way, the outcome is read back: a start by its session and work ID, an end by the history of
// its work ID. IDs are made once for an operation, not once for an attempt. An end that left no trace is repeated, because it is fenced: whichever of the
// two arrives second finds nothing to end. A start that arrives after it was given up is found by a beat, which compares what the
// database believes with what the program does, and is released.
//
// # Where this departs from the proposal it was made from
//
// Slots of limits carry a flag, open, that lowering the limit clears, instead of a maximum that a start reads: the start's lock on the
// slot makes it exact without a lock on the limit. Works keep their session and claim after their end, so that an end needs no second
// read. Processes of the original have rows but no ready rows: they cost a machine nothing. The recompute evaluates all processes
// of a machine and writes only the rows that differ, which costs the same as choosing them by the facts that changed.
package bmdb
