// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
)

// LogEntry is a line of an operator's log.
type LogEntry map[string]any

// Text is the value of a key, empty when it has none or is no text.
func (e LogEntry) Text(key string) string {
	s, _ := e[key].(string)
	return s
}

// EndsOf returns what an operator says of the works for a claim that it ends, or that end for it, from an offset of its log on; by work.
func (o *Operator) EndsOf(claim string, from int64) map[string][]LogEntry {
	o.Lab.T.Helper()
	ends := map[string][]LogEntry{}
	entries, _ := o.Logged(from, func(e LogEntry) bool {
		return e.Text("claim") == claim && e.Text("work") != "" && e.Text("msg") != "started work"
	})
	for _, e := range entries {
		ends[e.Text("work")] = append(ends[e.Text("work")], e)
	}
	return ends
}

// LogEnd is the offset of the log's end.
func (o *Operator) LogEnd() int64 {
	o.Lab.T.Helper()
	_, end := o.Logged(0, func(LogEntry) bool { return false })
	return end
}

// Logged returns the lines of the log from an offset on that match, and the offset of its end.
func (o *Operator) Logged(from int64, match func(LogEntry) bool) (entries []LogEntry, end int64) {
	o.Lab.T.Helper()
	f, err := os.Open(o.Log)
	if err != nil {
		o.Lab.T.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		o.Lab.T.Fatal(err)
	}
	end = from
	lines := bufio.NewReader(f)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return entries, end // a line that is not whole yet is for the next time
		}
		end += int64(len(line))
		var e LogEntry
		if json.Unmarshal(line, &e) == nil && match(e) {
			entries = append(entries, e)
		}
	}
}
