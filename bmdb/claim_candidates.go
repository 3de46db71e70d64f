// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

const (
	// narrow is up to how many machines a side of a selection is read as a whole. Above, it is read by pages, or from another side.
	narrow = 1000
	// pageSize is how many ready machines a page has.
	pageSize = 1000
	// pagesPerRound bounds how long a round that finds nothing may take; the next one goes on where it stopped.
	pagesPerRound = 16
	// glance is how many ready machines a claim looks at first that wants a few more: it costs a small part of the counts that choose a shape.
	glance = 32
)

// candidate is a machine that is worth a try.
type candidate struct {
	machine  uuid.UUID
	provider string
}

// walk is the way of a claim's owner over the ready machines of its providers: once around, from a random start, and then anew.
type walk struct {
	laps   map[string]*lap  // by provider
	stocks map[string]stock // by provider
}

// stock is what is left of the candidates that were read, for which there was no room. The start looks at each again.
type stock struct {
	left []candidate
	read boottime
}

// stockLasts is for how long a stock is good enough to start from it without a look at what else there is.
const stockLasts = time.Second

// keep keeps for the next round what this one had no room for.
func (w *walk) keep(provider string, left []candidate, read boottime) {
	if w.stocks == nil {
		w.stocks = map[string]stock{}
	}
	w.stocks[provider] = stock{left: left, read: read}
}

// take empties the stock of a provider.
func (w *walk) take(provider string) stock {
	s := w.stocks[provider]
	delete(w.stocks, provider)
	return s
}

// fresh returns sources of what is in stock and was read a moment ago. They have something once, and keep what was not tried.
func (w *walk) fresh() (sources []source) {
	for provider, s := range w.stocks {
		if len(s.left) > 0 && now().sub(s.read) < stockLasts {
			sources = append(sources, source{
				provider: provider,
				stocked:  true,
				next:     func(context.Context) ([]candidate, bool, error) { return w.take(provider).left, false, nil },
				putBack:  func(left []candidate) { w.keep(provider, left, s.read) },
			})
		}
	}
	return sources
}

// lap is one way around the machines of a provider, by their IDs.
type lap struct {
	start, next uuid.UUID
	wrapped     bool
	over        bool
}

var lastID = uuid.UUID{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

func newLap() *lap {
	var id uuid.UUID
	binary.BigEndian.PutUint64(id[:8], rand.Uint64())
	return &lap{start: id, next: id}
}

// end is the last machine that the lap may come to before it turns or is over.
func (l *lap) end() uuid.UUID {
	if l.wrapped {
		return before(l.start)
	}
	return lastID
}

// reached moves the lap behind a machine.
func (l *lap) reached(id uuid.UUID) {
	if id == lastID {
		l.turn()
		return
	}
	l.next = after(id)
}

// turn is called when there is nothing more up to the lap's end.
func (l *lap) turn() {
	if l.wrapped || l.start == uuid.Nil {
		l.over = true
		return
	}
	l.wrapped, l.next = true, uuid.Nil
}

// after and before are the neighbours of an ID that has one there.
func after(id uuid.UUID) uuid.UUID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]++
		if id[i] != 0 {
			break
		}
	}
	return id
}

func before(id uuid.UUID) uuid.UUID {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]--
		if id[i] != 0xff {
			break
		}
	}
	return id
}

// source yields the candidates of one provider, or of names, in batches.
type source struct {
	provider string
	stocked  bool // nobody has looked at whether the provider has room
	next     func(ctx context.Context) (found []candidate, more bool, err error)
	putBack  func(left []candidate) // keeps for the next round what this one had no room for
}

// sources returns where the candidates of a claim come from that wants so many more in all: by its names, or for each provider that has ready machines
// and room, from a random one.
func (c *Connection) sources(ctx context.Context, spec *ClaimSpec, w *walk, wants int64) ([]source, error) {
	if len(spec.Names) > 0 {
		found, err := c.candidates(ctx, "CandidatesByName", sqlCandidatesByName, append(spec.selectionArgs(), spec.Names))
		if err != nil {
			return nil, err
		}
		byProvider := map[string][]candidate{}
		for _, f := range found {
			byProvider[f.provider] = append(byProvider[f.provider], f)
		}
		var sources []source
		for provider, candidates := range byProvider {
			sources = append(sources, w.atOnce(provider, shuffled(candidates), now()))
		}
		return sources, nil
	}
	var providers []string
	err := c.read(ctx, "ReadyProviders", sqlReadyProviders, []any{spec.Pool, spec.Process, spec.Provider}, func() { providers = nil }, func(row pgx.Rows) error {
		var p string
		err := row.Scan(&p)
		providers = append(providers, p)
		return err
	})
	if err != nil {
		return nil, err
	}
	rand.Shuffle(len(providers), func(i, j int) { providers[i], providers[j] = providers[j], providers[i] })
	sources := make([]source, 0, len(providers))
	for _, p := range providers {
		of := *spec
		of.Provider = p
		sources = append(sources, c.ready(&of, w, wants))
	}
	return sources, nil
}

// ready is a source of the machines of one provider, in the shape that fits how many there are. Who wants a few and has nothing in stock has a
// glance at a random place first, which is enough for claims that most machines fit. Who goes on for long is better off with a large stock.
func (c *Connection) ready(spec *ClaimSpec, w *walk, wants int64) source {
	read, glanced := now(), wants > glance/2 || len(w.stocks[spec.Provider].left) > 0
	var rest *source
	return source{
		provider: spec.Provider,
		next: func(ctx context.Context) ([]candidate, bool, error) {
			if !glanced {
				glanced = true
				return c.glance(ctx, spec)
			}
			if rest == nil {
				s, err := c.shape(ctx, spec, w)
				if err != nil {
					return nil, false, err
				}
				rest = &s
			}
			return rest.next(ctx)
		},
		putBack: func(left []candidate) {
			if rest != nil {
				rest.putBack(left)
				return
			}
			w.keep(spec.Provider, left, read)
		},
	}
}

// glance reads a few ready machines from a random place on, around the end. Its hits may be none where there is more.
func (c *Connection) glance(ctx context.Context, spec *ClaimSpec) (hits []candidate, more bool, err error) {
	l := newLap()
	hits, more, err = c.page(ctx, spec, l, glance)
	if err != nil || !more || !l.wrapped {
		return hits, more, err
	}
	first, more, err := c.page(ctx, spec, l, glance)
	return append(hits, first...), more, err
}

// shape picks how the candidates of one provider are found.
func (c *Connection) shape(ctx context.Context, spec *ClaimSpec, w *walk) (source, error) {
	ready, err := c.count(ctx, "CountReady", sqlCountReady, spec.Pool, spec.Process, spec.Provider)
	if err != nil {
		return source{}, err
	}
	if ready <= narrow {
		found, err := c.candidates(ctx, "CandidatesReady", sqlCandidatesReady, append(spec.selectionArgs(), narrow+1))
		return w.atOnce(spec.Provider, shuffled(found), now()), err
	}
	label, value, err := c.narrowest(ctx, spec)
	if err != nil {
		return source{}, err
	}
	if label != "" {
		found, err := c.candidates(ctx, "CandidatesByLabel", sqlCandidatesByLabel, append(spec.selectionArgs(), label, value, narrow+1))
		return w.atOnce(spec.Provider, shuffled(found), now()), err
	}
	if w.laps == nil {
		w.laps = map[string]*lap{}
	}
	l := w.laps[spec.Provider]
	if l == nil || l.over && len(w.stocks[spec.Provider].left) == 0 {
		l = newLap()
		w.laps[spec.Provider] = l
	}
	read := now()
	return source{
		provider: spec.Provider,
		next: func(ctx context.Context) ([]candidate, bool, error) {
			if s := w.take(spec.Provider); len(s.left) > 0 {
				return s.left, !l.over, nil
			}
			return c.page(ctx, spec, l, pageSize)
		},
		putBack: func(left []candidate) { w.keep(spec.Provider, left, read) },
	}, nil
}

// narrowest finds the equality term of the selector that the fewest machines match, if that is few enough.
func (c *Connection) narrowest(ctx context.Context, spec *ClaimSpec) (label, value string, err error) {
	least := int64(narrow + 1)
	for _, t := range spec.Selector.canonical() {
		if t.Operator != SelectorIn || len(t.Values) != 1 {
			continue
		}
		n, err := c.count(ctx, "CountLabel", sqlCountLabel, spec.Pool, t.Key, t.Values[0])
		if err != nil {
			return "", "", err
		}
		if n < least {
			least, label, value = n, t.Key, t.Values[0]
		}
	}
	return label, value, nil
}

func (c *Connection) count(ctx context.Context, name, sql, a, b, provider string) (n int64, err error) {
	err = c.read(ctx, name, sql, []any{a, b, provider, narrow + 1}, func() {}, func(row pgx.Rows) error { return row.Scan(&n) })
	return n, err
}

func (c *Connection) candidates(ctx context.Context, name, sql string, args []any) (found []candidate, err error) {
	err = c.read(ctx, name, sql, args, func() { found = nil }, func(row pgx.Rows) error {
		var f candidate
		err := row.Scan(&f.machine, &f.provider)
		found = append(found, f)
		return err
	})
	return found, err
}

// shuffled begins at a random place, so that those who found the same do not begin with the same.
func shuffled(found []candidate) []candidate {
	if len(found) > 1 {
		i := rand.IntN(len(found))
		found = append(append(make([]candidate, 0, len(found)), found[i:]...), found[:i]...)
	}
	return found
}

// atOnce is a source that has everything that it will have.
func (w *walk) atOnce(provider string, found []candidate, read boottime) source {
	return source{
		provider: provider,
		next:     func(context.Context) ([]candidate, bool, error) { return found, false, nil },
		putBack:  func(left []candidate) { w.keep(provider, left, read) },
	}
}

// page reads the next page of a lap, of a size. Its hits may be none where there is more.
func (c *Connection) page(ctx context.Context, spec *ClaimSpec, l *lap, size int) (hits []candidate, more bool, err error) {
	if l.over {
		return nil, false, nil
	}
	rows, last := 0, uuid.Nil
	args := append(spec.selectionArgs(), l.next, l.end(), size)
	err = c.read(ctx, "CandidatesPage", sqlCandidatesPage, args, func() { hits, rows = nil, 0 }, func(row pgx.Rows) error {
		var f candidate
		var hit bool
		if err := row.Scan(&f.machine, &f.provider, &hit); err != nil {
			return err
		}
		rows, last = rows+1, f.machine
		if hit {
			hits = append(hits, f)
		}
		return nil
	})
	if err != nil {
		return nil, false, err
	}
	if rows < size {
		l.turn()
	} else {
		l.reached(last)
	}
	return hits, !l.over, nil
}
