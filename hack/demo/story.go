// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

const (
	pool  = "metal"
	claim = "start-agents"
)

// tell applies the samples, watches the claim as a user would, kills the operator that owns it in the middle, and checks the outcome in
// the database.
func tell(ctx context.Context, e *environment) error {
	overlay, err := e.manifests()
	if err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	fmt.Println("\n$ kubectl apply -k config/samples      # with the addresses, host keys and private key of these machines")
	out, err := e.kubectl(ctx, "apply", "-k", overlay)
	if err != nil {
		return err
	}
	fmt.Print(out)

	db, err := (&bmdb.BMDB{Config: bmdb.Config{DatabaseURL: e.databaseURL, ComponentName: "demo", MaxConnections: 2}}).Open(false)
	if err != nil {
		return err
	}
	defer db.Close()

	fmt.Println("\n$ kubectl -n metal get wclaim -w")
	fmt.Println("  NAME           PROCESS      DONE  ACTIVE  FAILED  STATE")
	finished, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		watch(ctx, e, finished)
	}()
	victim, err := killOwner(ctx, e, db)
	if err == nil {
		_, err = e.kubectl(ctx, "-n", pool, "wait", "--for=condition=Finished", "--timeout=120s", "wclaim/"+claim)
	}
	close(finished)
	<-watched
	if err != nil {
		return err
	}
	if err := settled(ctx, e); err != nil {
		return err
	}
	fmt.Println()
	for _, args := range [][]string{{"get", "bmp"}, {"get", "bmm"}, {"get", "wclaim"}} {
		fmt.Println("$ kubectl -n metal", strings.Join(args, " "))
		out, err := e.kubectl(ctx, append([]string{"-n", pool}, args...)...)
		if err != nil {
			return err
		}
		fmt.Println(out)
	}
	return verify(ctx, db, victim)
}

// settled waits until the machines' statuses show no work any more: they follow the claim's by up to a status interval.
func settled(ctx context.Context, e *environment) error {
	for sleep(ctx, 200*time.Millisecond) {
		out, err := e.kubectl(ctx, "-n", pool, "get", "bmm", "-o", "jsonpath={.items[*].status.work[*].process}")
		if err != nil || strings.TrimSpace(out) == "" {
			return err
		}
	}
	return fmt.Errorf("machines still show work after the claim is finished: %w", ctx.Err())
}

// watch prints the claim's line whenever it changes, until it is finished, and then once more.
func watch(ctx context.Context, e *environment, finished <-chan struct{}) {
	last := ""
	for over := false; !over; {
		select {
		case <-ctx.Done():
			return
		case <-finished:
			over = true
		case <-time.After(200 * time.Millisecond):
		}
		out, err := e.kubectl(ctx, "-n", pool, "get", "wclaim", claim, "--no-headers")
		line := strings.TrimSpace(out)
		if fields := strings.Fields(line); err == nil && len(fields) > 5 {
			line = fmt.Sprintf("%-14s %-12s %-5s %-7s %-7s %s", fields[0], fields[1], fields[2], fields[3], fields[4], fields[5])
			if line != last {
				fmt.Println("  " + line)
				last = line
			}
		}
	}
}

// killOwner waits until the claim is in the middle, with machines done and work under way, and kills the operator that does it with SIGKILL.
func killOwner(ctx context.Context, e *environment, db *bmdb.Connection) (string, error) {
	for sleep(ctx, 5*time.Millisecond) {
		c, err := db.ClaimSnapshot(ctx, pool, claim, bmdb.ClaimLimits{})
		if err == nil && c.State != bmdb.ClaimRunning {
			return "", fmt.Errorf("the claim was %s before an operator could be killed", c.State)
		}
		if err != nil || len(c.Works) == 0 || c.Succeeded == 0 {
			continue
		}
		for _, o := range e.operators {
			if strings.Contains(c.Works[0].Holder, o.name) {
				if err := o.process.Signal(syscall.SIGKILL); err != nil {
					return "", err
				}
				<-o.process.Done()
				fmt.Printf("  --- kill -9 %s: done %d, at work on %d; its lease of %s has to run out first\n", o.name, c.Succeeded, len(c.Works), lease)
				return o.name, nil
			}
		}
	}
	return "", fmt.Errorf("the claim never had work under way: %w", ctx.Err())
}

// verify checks in the database that each machine has exactly one Finished, and prints the history of one that was taken over.
func verify(ctx context.Context, db *bmdb.Connection, victim string) error {
	var shown []model.WorkHistory
	name := ""
	for i := range machineCount {
		m := fmt.Sprintf("m%d", i+1)
		machine, err := db.MachineByName(ctx, pool, m)
		if err != nil {
			return err
		}
		history, err := db.ListHistoryOf(ctx, machine)
		if err != nil {
			return err
		}
		finished, lost := 0, 0
		for _, h := range history {
			if h.Event == model.WorkHistoryEventFinished {
				finished++
			}
			if h.Event == model.WorkHistoryEventLost {
				lost++
			}
		}
		if finished != 1 {
			return fmt.Errorf("machine %s has %d Finished in its history, want exactly 1", m, finished)
		}
		if shown == nil || lost > 0 {
			shown, name = history, m
		}
	}
	fmt.Printf("The history of machine %s, from the database (%s was killed; a Lost work was taken over by the other operator):\n\n", name, victim)
	fmt.Printf("  %-12s %-12s %-10s %-9s %s\n", "TIME", "PROCESS", "EVENT", "FENCE", "BY")
	for _, h := range shown {
		fmt.Printf("  %-12s %-12s %-10s %-9d %s\n", h.Timestamp.Format("15:04:05.000"), h.Process, h.Event, h.Fence, h.Actor)
	}
	return nil
}

func ready(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}
