// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

const (
	pool  = "metal"
	claim = "start-agents"
	// sampleMachines is how many machines config/samples has.
	sampleMachines = 6
)

// tellMainJob applies the samples, watches the claim as a user would, kills the operator that owns it in the middle, and checks the outcome in
// the database.
func tellMainJob(ctx context.Context, e *environment) (outcome string, err error) {
	c := e.newCluster("")
	err = e.start(ctx, append(e.databaseSteps(),
		step{"etcd, kube-apiserver and kube-controller-manager, with the CRDs", c.startControlPlane},
		e.machinesStep(sampleMachines),
		step{
			fmt.Sprintf("two operators, with a lease of %s (60 s is the default: here it is short, so that a takeover is quick to watch)", lease),
			func(ctx context.Context) error { return c.startOperators(ctx, []string{"operator-a", "operator-b"}) },
		},
	))
	if err != nil {
		return "", err
	}
	if err := c.tell(ctx); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d/%[1]d machines, each finished exactly once", sampleMachines), nil
}

func (c *cluster) tell(ctx context.Context) error {
	overlay, err := c.env.manifests(nil)
	if err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	fmt.Println("\n$ kubectl apply -k config/samples      # with the addresses, host keys and private key of these machines")
	out, err := c.kubectl(ctx, "apply", "-k", overlay)
	if err != nil {
		return err
	}
	fmt.Print(out)

	db, err := c.env.openDatabase()
	if err != nil {
		return err
	}
	defer db.Close()

	fmt.Println("\n$ kubectl -n metal get wclaim -w")
	fmt.Println("  NAME           PROCESS      DONE  ACTIVE  FAILED  STATE")
	finished, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		c.watch(ctx, finished, claim)
	}()
	victim, err := c.killOwner(ctx, db)
	if err == nil {
		_, err = c.kubectl(ctx, "-n", pool, "wait", "--for=condition=Finished", "--timeout=120s", "wclaim/"+claim)
	}
	close(finished)
	<-watched
	if err != nil {
		return err
	}
	if err := c.settled(ctx); err != nil {
		return err
	}
	fmt.Println()
	for _, args := range [][]string{{"get", "bmp"}, {"get", "bmm"}, {"get", "wclaim"}} {
		if err := c.show(ctx, args...); err != nil {
			return err
		}
	}
	l, err := readLedger(ctx, db, sampleMachines)
	if err != nil {
		return err
	}
	l.print(victim+" was killed", "the other operator")
	return nil
}

// show prints what kubectl says.
func (c *cluster) show(ctx context.Context, args ...string) error {
	args = append([]string{"-n", pool}, args...)
	out, err := c.kubectl(ctx, args...)
	if err == nil {
		fmt.Printf("%s$ kubectl %s\n%s\n", c.name, strings.Join(args, " "), out)
	}
	return err
}

// settled waits until the machines' statuses show no work any more: they follow the claim's by up to a status interval.
func (c *cluster) settled(ctx context.Context) error {
	for sleep(ctx, 200*time.Millisecond) {
		out, err := c.kubectl(ctx, "-n", pool, "get", "bmm", "-o", "jsonpath={.items[*].status.work[*].process}")
		if err != nil || strings.TrimSpace(out) == "" {
			return err
		}
	}
	return fmt.Errorf("machines still show work after the claim is finished: %w", ctx.Err())
}

// watch prints claims' lines whenever they change, until they are finished, and then once more.
func (c *cluster) watch(ctx context.Context, finished <-chan struct{}, claims ...string) {
	last := map[string]string{}
	for over := false; !over; {
		select {
		case <-ctx.Done():
			return
		case <-finished:
			over = true
		case <-time.After(200 * time.Millisecond):
		}
		out, err := c.kubectl(ctx, append([]string{"-n", pool, "get", "wclaim", "--no-headers"}, claims...)...)
		if err != nil {
			continue
		}
		for line := range strings.Lines(out) {
			fields := strings.Fields(line)
			if len(fields) <= 5 {
				continue
			}
			line = fmt.Sprintf("%-14s %-12s %-5s %-7s %-7s %s", fields[0], fields[1], fields[2], fields[3], fields[4], fields[5])
			if line != last[fields[0]] {
				fmt.Println("  " + line)
				last[fields[0]] = line
			}
		}
	}
}

// inTheMiddle waits until the claim has machines done and work under way, and returns it.
func inTheMiddle(ctx context.Context, db *bmdb.Connection) (*bmdb.ClaimSnapshot, error) {
	for sleep(ctx, 5*time.Millisecond) {
		s, err := db.ClaimSnapshot(ctx, pool, claim, bmdb.ClaimLimits{})
		if err == nil && s.State != bmdb.ClaimRunning {
			return nil, fmt.Errorf("the claim was %s before anything could be killed", s.State)
		}
		if err == nil && len(s.Works) > 0 && s.Succeeded > 0 {
			return s, nil
		}
	}
	return nil, fmt.Errorf("the claim never had work under way: %w", ctx.Err())
}

// killOwner kills the operator that works with SIGKILL, in the middle.
func (c *cluster) killOwner(ctx context.Context, db *bmdb.Connection) (string, error) {
	for ctx.Err() == nil {
		s, err := inTheMiddle(ctx, db)
		if err != nil {
			return "", err
		}
		for _, o := range c.operators {
			if strings.Contains(s.Works[0].Holder, o.name) {
				if err := o.kill(); err != nil {
					return "", err
				}
				fmt.Printf("  --- kill -9 %s: done %d, at work on %d; its lease of %s has to run out first\n", o.name, s.Succeeded, len(s.Works), lease)
				return o.name, nil
			}
		}
	}
	return "", fmt.Errorf("no operator was at work: %w", ctx.Err())
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
