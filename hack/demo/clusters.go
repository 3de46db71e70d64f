// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

const (
	// fleetMachines are those of the samples and as many more, for a second claim.
	fleetMachines = 2 * sampleMachines
	secondClaim   = "start-agents-2"
	// fleetLimit is how many of them may be worked on at once, less than the two claims want.
	fleetLimit = 3
	// takeoverAfter is for how long a cluster must be silent until its roles pass.
	takeoverAfter = 2 * lease
)

// pair is two clusters with one database.
type pair struct {
	env      *environment
	one, two *cluster
	db       *bmdb.Connection
}

// tellTwoClusters applies the same manifests in two clusters, destroys the first while it works, and checks in the database what was done.
func tellTwoClusters(ctx context.Context, e *environment) (outcome string, err error) {
	p := &pair{env: e, one: e.newCluster("one"), two: e.newCluster("two")}
	if err := p.start(ctx); err != nil {
		return "", err
	}
	if p.db, err = e.openDatabase(); err != nil {
		return "", err
	}
	defer p.db.Close()
	for _, act := range []func(context.Context) error{p.apply, p.showBoth, p.work, p.showLast} {
		if err := act(ctx); err != nil {
			return "", err
		}
	}
	return p.judge(ctx)
}

func (p *pair) start(ctx context.Context) error {
	steps := p.env.databaseSteps()
	for _, c := range []*cluster{p.one, p.two} {
		steps = append(steps, step{"cluster " + c.name + ": etcd, kube-apiserver and kube-controller-manager, with the CRDs", c.startControlPlane})
	}
	steps = append(steps, p.env.machinesStep(fleetMachines), step{
		fmt.Sprintf("two operators in each cluster, with --lease %s and --manager-takeover-after %s (60s and 10m are the defaults: here they are short, so that a takeover is quick to watch)", lease, takeoverAfter),
		func(ctx context.Context) error {
			for _, c := range []*cluster{p.one, p.two} {
				if err := c.startOperators(ctx, []string{c.name + "-a", c.name + "-b"}, "--cluster-id", c.name, "--manager-takeover-after", takeoverAfter.String()); err != nil {
					return err
				}
			}
			return nil
		},
	})
	return p.env.start(ctx, steps)
}

// apply brings the same manifests to both clusters: most of them to the first at first, a claim to the second.
func (p *pair) apply(ctx context.Context) error {
	suspend := fmt.Sprintf("{kind: WorkClaim, apiVersion: bmdb.dev/v1alpha1, metadata: {name: %s, namespace: metal}, spec: {suspend: true}}", claim)
	limit := fmt.Sprintf("{kind: ProviderConfig, apiVersion: bmdb.dev/v1alpha1, metadata: {name: lab, namespace: metal}, spec: {limits: {parallelism: %d}}}", fleetLimit)
	fleet, err := p.env.manifests(map[string]string{"more.yaml": p.moreMachines()}, suspend, limit)
	if err != nil {
		return fmt.Errorf("write manifests: %w", err)
	}
	second := filepath.Join(p.env.dir, "second.yaml")
	if err := os.WriteFile(second, []byte(secondManifest()), 0o600); err != nil {
		return err
	}
	fmt.Printf("\nThe manifests are config/samples, with %d machines instead of %d, spec.limits.parallelism: %d in the ProviderConfig, and WorkClaim %s\nsuspended. Then there is %s, for the other machines, which gets to cluster two first.\n\n",
		fleetMachines, sampleMachines, fleetLimit, claim, secondClaim)
	for _, a := range []struct {
		to    *cluster
		args  []string
		shown string
		claim string
	}{
		{p.one, []string{"apply", "-k", fleet}, "-k fleet", claim},
		{p.two, []string{"apply", "-k", fleet}, "-k fleet", claim},
		{p.two, []string{"apply", "-f", second}, "-f second.yaml", secondClaim},
		{p.one, []string{"apply", "-f", second}, "-f second.yaml", secondClaim},
	} {
		out, err := a.to.kubectl(ctx, a.args...)
		if err != nil {
			return err
		}
		fmt.Printf("%s$ kubectl apply %s      # %d created\n", a.to.name, a.shown, strings.Count(out, " created"))
		if err := p.known(ctx, a.to, a.claim); err != nil {
			return err
		}
	}
	return nil
}

func (p *pair) moreMachines() string {
	var b strings.Builder
	for i, m := range p.env.machines.Machines[sampleMachines:] {
		fmt.Fprintf(&b, "---\napiVersion: bmdb.dev/v1alpha1\nkind: Machine\nmetadata: {name: %[1]s, namespace: %[2]s}\nspec: {providerRef: {name: lab}, providerID: %[1]s, address: %[3]q}\n",
			machineName(sampleMachines+i), pool, m.Address)
	}
	return b.String()
}

func secondManifest() string {
	var names []string
	for i := sampleMachines; i < fleetMachines; i++ {
		names = append(names, machineName(i))
	}
	return fmt.Sprintf("apiVersion: bmdb.dev/v1alpha1\nkind: WorkClaim\nmetadata: {name: %s, namespace: %s}\nspec: {process: AgentStart, mode: Once, machines: {names: [%s]}, parallelism: 3, suspend: true}\n",
		secondClaim, pool, strings.Join(names, ", "))
}

// known waits until a cluster shows who manages all machines and a claim, and a pod owns the claim: of the cluster that has it first, as the other has not
// heard of it then.
func (p *pair) known(ctx context.Context, c *cluster, claim string) error {
	for sleep(ctx, 200*time.Millisecond) {
		machines, err := c.managed(ctx, "bmm")
		if err != nil {
			return err
		}
		claims, err := c.managed(ctx, "wclaim/"+claim)
		if err != nil {
			return err
		}
		s, err := p.db.ClaimSnapshot(ctx, pool, claim, bmdb.ClaimLimits{})
		if len(machines) == fleetMachines && len(claims) == 1 && err == nil && s.Owner != "" {
			return nil
		}
	}
	return fmt.Errorf("cluster %s does not show all machines, or nobody owns %s: %w", c.name, claim, ctx.Err())
}

// managed returns what objects say of whether they manage.
func (c *cluster) managed(ctx context.Context, objects ...string) ([]string, error) {
	const status = `{.status.conditions[?(@.type=="Managed")].status}`
	template := "jsonpath={range .items[*]}" + status + "{\" \"}{end}"
	if strings.Contains(objects[0], "/") {
		template = "jsonpath=" + status
	}
	out, err := c.kubectl(ctx, append([]string{"-n", pool, "get", "-o", template}, objects...)...)
	return strings.Fields(out), err
}

// showBoth shows that one cluster manages and the other shows.
func (p *pair) showBoth(ctx context.Context) error {
	fmt.Println("\nEach object is managed by the cluster that had it first, and shown by the other. A machine is the same one in both:")
	fmt.Println()
	for _, c := range []*cluster{p.one, p.two} {
		if err := c.showRoles(ctx, "bmp/lab", "bmm/m1", "bmm/m12", "wclaim/"+claim, "wclaim/"+secondClaim); err != nil {
			return err
		}
	}
	return nil
}

// showRoles prints who manages objects.
func (c *cluster) showRoles(ctx context.Context, objects ...string) error {
	columns := `custom-columns=KIND:.kind,NAME:.metadata.name,MANAGED:.status.conditions[?(@.type=="Managed")].status,REASON:.status.conditions[?(@.type=="Managed")].reason,MACHINE-ID:.status.machineID`
	out, err := c.kubectl(ctx, append(append([]string{"-n", pool, "get"}, objects...), "-o", columns)...)
	if err == nil {
		fmt.Printf("%s$ kubectl -n %s get %s -o custom-columns=...\n%s\n", c.name, pool, strings.Join(objects, " "), out)
	}
	return err
}

// work lets both claims go, destroys the first cluster in the middle, and waits for the end.
func (p *pair) work(ctx context.Context) error {
	fmt.Printf("Now \"suspend\" is taken out in both. Each claim wants 3 machines at once, the provider allows %d, whoever works:\n\n", fleetLimit)
	fmt.Printf("two$ kubectl -n %s get wclaim -w\n  NAME           PROCESS      DONE  ACTIVE  FAILED  STATE\n", pool)
	group, groupCtx := errgroup.WithContext(ctx)
	for _, c := range []*cluster{p.one, p.two} {
		group.Go(func() error {
			_, err := c.kubectl(groupCtx, "-n", pool, "patch", "wclaim", claim, secondClaim, "--type=merge", "-p", `{"spec":{"suspend":false}}`)
			return err
		})
	}
	finished, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		p.two.watch(ctx, finished, claim, secondClaim)
	}()
	err := group.Wait()
	if err == nil {
		err = p.destroyOne(ctx)
	}
	if err == nil {
		_, err = p.two.kubectl(ctx, "-n", pool, "wait", "--for=condition=Finished", "--timeout=120s", "wclaim/"+claim, "wclaim/"+secondClaim)
	}
	if err == nil {
		err = p.two.managesAll(ctx)
	}
	close(finished)
	<-watched
	if err != nil {
		return err
	}
	return p.two.settled(ctx)
}

func (p *pair) destroyOne(ctx context.Context) error {
	for ctx.Err() == nil {
		s, err := inTheMiddle(ctx, p.db)
		if err != nil {
			return err
		}
		if s.Works[0].Cluster != p.one.name {
			continue
		}
		if err := p.one.destroy(); err != nil {
			return err
		}
		fmt.Printf("  --- cluster one is destroyed, operators, API server and etcd: %s is done on %d, and was at work on %d.\n", claim, s.Succeeded, len(s.Works))
		fmt.Printf("  --- After the lease of %s two's pods take its claims and locks over, after %s of silence two's objects manage.\n", lease, takeoverAfter)
		return nil
	}
	return fmt.Errorf("cluster one was never at work: %w", ctx.Err())
}

// managesAll waits until all objects of a cluster manage.
func (c *cluster) managesAll(ctx context.Context) error {
	for sleep(ctx, 200*time.Millisecond) {
		managed, err := c.managed(ctx, "bmm,wclaim,bmp")
		if err != nil || !slices.Contains(managed, "False") {
			return err
		}
	}
	return fmt.Errorf("not all objects of cluster %s manage: %w", c.name, ctx.Err())
}

// showLast prints what cluster two shows in the end.
func (p *pair) showLast(ctx context.Context) error {
	fmt.Println()
	if err := p.two.showRoles(ctx, "bmp/lab", "bmm/m1", "bmm/m12", "wclaim/"+claim, "wclaim/"+secondClaim); err != nil {
		return err
	}
	for _, kind := range []string{"bmm", "wclaim"} {
		if err := p.two.show(ctx, "get", kind); err != nil {
			return err
		}
	}
	return nil
}

// judge checks in the database what was done, and prints of it what a person would ask.
func (p *pair) judge(ctx context.Context) (outcome string, err error) {
	l, err := readLedger(ctx, p.db, fleetMachines)
	if err != nil {
		return "", err
	}
	l.print("one's pods were killed", "two's")
	events, err := p.db.AuditOf(ctx, pool, bmdb.KindClaim, claim, 10)
	if err != nil {
		return "", err
	}
	fmt.Printf("\nWhat became of WorkClaim %s, from the audit log:\n\n  %-12s %-10s %-12s %s\n", claim, "TIME", "EVENT", "BY", "CAUSE")
	passed := false
	for i := range events {
		a := &events[len(events)-1-i]
		passed = passed || a.Event == bmdb.AuditManages && a.Cluster == p.two.name
		fmt.Printf("  %-12s %-10s %-12s %s\n", a.At.Format("15:04:05.000"), a.Event, a.Actor, a.Cause)
	}
	most, byOne, byTwo := l.atOnce(), l.startsBy(p.one.operators), l.startsBy(p.two.operators)
	switch {
	case !passed:
		return "", errors.New("the audit log does not say that cluster two manages the claim")
	case most > fleetLimit:
		return "", fmt.Errorf("%d works went on at once, the limit is %d", most, fleetLimit)
	case byOne == 0 || byTwo == 0:
		return "", fmt.Errorf("cluster one started %d works and cluster two %d, both should have worked", byOne, byTwo)
	}
	return fmt.Sprintf("%d/%[1]d machines, each finished exactly once; one started %d works and two %d, at most %d at once", fleetMachines, byOne, byTwo, most), nil
}
