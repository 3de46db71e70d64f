// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Command fleet prints the manifests of a simulated fleet of any size: a ProviderConfig, its Machines, and claims on them.
//
//	go run ./hack/fleet --machines 10000 --claims 20 | kubectl apply --server-side -f -
//
// The operator must run with --allow-simulated.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
)

// fleet is what is printed.
type fleet struct {
	namespace, provider        string
	machines, perRack          int
	claims, parallelism        int
	latency, failures, hanging int
	seed                       int64
}

func main() {
	if err := command().Execute(); err != nil {
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var f fleet
	c := &cobra.Command{
		Use:           "fleet",
		Short:         "Print the manifests of a simulated fleet of any size",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: false,
		RunE:          func(c *cobra.Command, _ []string) error { return f.print(c.OutOrStdout()) },
	}
	flags := c.Flags()
	flags.StringVar(&f.namespace, "namespace", "metal", "namespace, which is the pool")
	flags.StringVar(&f.provider, "provider", "simulated", "name of the ProviderConfig")
	flags.IntVar(&f.machines, "machines", 1000, "how many machines")
	flags.IntVar(&f.perRack, "per-rack", 40, "how many machines have the same label rack")
	flags.IntVar(&f.claims, "claims", 1, "how many claims share the machines: each has an equal part of them by name, at most 1000")
	flags.IntVar(&f.parallelism, "parallelism", 10, "how many machines a claim works on at once")
	flags.IntVar(&f.latency, "latency-milliseconds", 200, "how long the work on a machine takes")
	flags.IntVar(&f.failures, "failure-percent", 0, "how many of 100 attempts fail")
	flags.IntVar(&f.hanging, "hang-percent", 0, "how many of 100 attempts hang until their timeout")
	flags.Int64Var(&f.seed, "seed", 1, "what decides who fails and hangs")
	return c
}

func (f fleet) validate() error {
	switch {
	case f.machines < 1 || f.perRack < 1:
		return errors.New("--machines and --per-rack must be at least 1")
	case f.claims < 0 || f.claims > f.machines:
		return errors.New("--claims must be from 0 to the number of machines")
	case f.claims > 0 && (f.machines+f.claims-1)/f.claims > maxNames:
		return fmt.Errorf("a claim names at most %d machines: --claims must be at least %d", maxNames, (f.machines+maxNames-1)/maxNames)
	}
	return nil
}

// maxNames is how many machines a WorkClaim may name.
const maxNames = 1000

func (f fleet) print(out io.Writer) error {
	if err := f.validate(); err != nil {
		return err
	}
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, `apiVersion: bmdb.dev/v1alpha1
kind: ProviderConfig
metadata: {name: %s, namespace: %s}
spec:
  type: Simulated
  simulated: {latencyMilliseconds: %d, failurePercent: %d, hangPercent: %d, seed: %d}
`, f.provider, f.namespace, f.latency, f.failures, f.hanging, f.seed)
	for i := range f.machines {
		fmt.Fprintf(w, `---
apiVersion: bmdb.dev/v1alpha1
kind: Machine
metadata: {name: %[1]s, namespace: %[2]s, labels: {rack: r%[3]d}}
spec: {providerRef: {name: %[4]s}, providerID: %[1]s}
`, machineName(i), f.namespace, i/f.perRack, f.provider)
	}
	for c := range f.claims {
		fmt.Fprintf(w, `---
apiVersion: bmdb.dev/v1alpha1
kind: WorkClaim
metadata: {name: start-agents-%d, namespace: %s}
spec:
  process: AgentStart
  mode: Once
  parallelism: %d
  machines:
    names:
`, c, f.namespace, f.parallelism)
		for i := c; i < f.machines; i += f.claims {
			fmt.Fprintf(w, "    - %s\n", machineName(i))
		}
	}
	return w.Flush()
}

func machineName(i int) string { return fmt.Sprintf("sim-%06d", i) }
