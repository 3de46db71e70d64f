// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package usage reads from /proc what processes use, and what the machine is.
package usage

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage is what a process has used.
type Usage struct {
	// At is when it was read.
	At time.Time
	// CPU is the time of all cores together, user and system.
	CPU time.Duration
	// Resident and Peak are bytes of memory, now and at most so far.
	Resident, Peak int64
}

// clockTick is the unit of times in /proc: a hundredth of a second on every Linux that Go runs on.
const clockTick = 10 * time.Millisecond

// Of reads what a process of this machine has used so far.
func Of(pid int) (Usage, error) {
	u := Usage{At: time.Now()}
	dir := "/proc/" + strconv.Itoa(pid)
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return u, fmt.Errorf("read what process %d uses: %w", pid, err)
	}
	// The name of the program, in brackets, may have blanks.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const user, system = 11, 12
	if len(fields) <= system {
		return u, fmt.Errorf("read what process %d uses: its stat has %d fields", pid, len(fields))
	}
	for _, f := range [][]byte{fields[user], fields[system]} {
		ticks, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return u, fmt.Errorf("read what process %d uses: %w", pid, err)
		}
		u.CPU += time.Duration(ticks) * clockTick
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return u, fmt.Errorf("read what process %d uses: %w", pid, err)
	}
	u.Resident, u.Peak = kilobytes(status, "VmRSS:"), kilobytes(status, "VmHWM:")
	return u, nil
}

// Since is the part of one core that was used on average since an earlier moment.
func (u Usage) Since(before Usage) float64 {
	if !u.At.After(before.At) {
		return 0
	}
	return float64(u.CPU-before.CPU) / float64(u.At.Sub(before.At))
}

func kilobytes(status []byte, key string) int64 {
	for line := range strings.Lines(string(status)) {
		rest, ok := strings.CutPrefix(line, key)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
		if err == nil {
			return n << 10
		}
	}
	return 0
}

// Processor is the name of the machine's processor, "unknown" if it does not tell.
func Processor() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown"
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown"
}

// Memory is how many bytes the machine has.
func Memory() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return kilobytes(text, "MemTotal:")
}

// Kernel is the version of the kernel.
func Kernel() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(text))
}

// Load is how many tasks ran or waited to run in the last minute, on average.
func Load() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	load, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0
	}
	return load
}
