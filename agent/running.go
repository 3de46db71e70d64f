// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// running is the content of running.json: a report, and which process made it.
type running struct {
	Report Report `json:"report"`
	// Process is what processIdentity said about Report.PID.
	Process string `json:"process"`
}

func writeRunning(name string, r Report) error {
	b, err := json.Marshal(running{Report: r, Process: processIdentity(os.DirFS("/"), r.PID)})
	if err != nil {
		return fmt.Errorf("encode report of running agent: %w", err)
	}
	if err := writeFile(name, append(b, '\n')); err != nil {
		return fmt.Errorf("write report of running agent: %w", err)
	}
	return nil
}

// Running returns the report of the agent that runs in the state directory,
// with AlreadyRunning set and the facts of this moment, or ErrNotRunning. It
// changes nothing and takes no lock.
func Running(dir string) (Report, error) {
	content, err := os.ReadFile(filepath.Join(dir, RunningFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Report{}, fmt.Errorf("look for agent in %s: %w", dir, ErrNotRunning)
	}
	if err != nil {
		return Report{}, fmt.Errorf("look for agent: %w", err)
	}
	var found running
	if err := json.Unmarshal(content, &found); err != nil {
		return Report{}, fmt.Errorf("read %s: %w", filepath.Join(dir, RunningFile), err)
	}
	// An agent that was killed leaves its report; its number may be another
	// process by now.
	if now := processIdentity(os.DirFS("/"), found.Report.PID); now == "" || now != found.Process {
		return Report{}, fmt.Errorf("look for agent %d in %s: %w", found.Report.PID, dir, ErrNotRunning)
	}
	r := found.Report
	r.AlreadyRunning = true
	if r.Facts, err = gatherJSON(); err != nil {
		return Report{}, err
	}
	return r, nil
}

// processIdentity tells a living process from every other that ever had or
// will have its number: by boot and start time. "" where it does not live.
func processIdentity(root fs.FS, pid int) string {
	stat := line(root, "proc/"+strconv.Itoa(pid)+"/stat")
	// The command's name is in parentheses and may hold anything.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	const state, startTime = 0, 19 // fields 3 and 22 of proc(5)
	if len(fields) <= startTime || fields[state] == "Z" || fields[state] == "X" {
		return ""
	}
	return line(root, "proc/sys/kernel/random/boot_id") + "/" + fields[startTime]
}
