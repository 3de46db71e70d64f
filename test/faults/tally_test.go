// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
)

// tally counts what struck, by fault. The zero value is empty. It is safe for concurrent use.
type tally struct {
	mu     sync.Mutex
	faults []string // in the order in which they came
	order  map[string][]string
	counts map[string]map[string]int64
}

// add counts. Adding 0 makes a row for what has not struck yet.
func (c *tally) add(fault, what string, n int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts, c.order = map[string]map[string]int64{}, map[string][]string{}
	}
	if c.counts[fault] == nil {
		c.faults, c.counts[fault] = append(c.faults, fault), map[string]int64{}
	}
	if _, ok := c.counts[fault][what]; !ok {
		c.order[fault] = append(c.order[fault], what)
	}
	c.counts[fault][what] += n
}

func (c *tally) of(fault, what string) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[fault][what]
}

// table is all counts, for people.
func (c *tally) table() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	slices.Sort(c.faults)
	for _, fault := range c.faults {
		for i, what := range c.order[fault] {
			name := fault
			if i > 0 {
				name = ""
			}
			fmt.Fprintf(w, "%s\t%s\t%d\n", name, what, c.counts[fault][what])
		}
	}
	_ = w.Flush() // into memory
	return text.String()
}
