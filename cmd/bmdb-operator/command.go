// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/migrations"
)

const (
	environmentPrefix = "BMDB_"
	// sessionGrace is how long closing the session may take, on top of what workers may.
	sessionGrace = 15 * time.Second
)

// newCommand returns the whole command line. Environment variables are read through getenv; they count where a flag is not given.
func newCommand(out io.Writer, getenv func(string) string) *cobra.Command {
	var c Config
	operate := func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), c, os.Stderr) }
	root := &cobra.Command{
		Use:   "bmdb-operator",
		Short: "Work on fleets of bare-metal machines, with a database as the source of truth",
		Long: "bmdb-operator carries out WorkClaims on machines that the Bare Metal Database knows, and shows in Kubernetes what the database\n" +
			"knows of them. Without a command it runs the operator. Each flag can be given as the environment variable behind it.",
		Args: cobra.NoArgs, RunE: operate, SilenceUsage: true, SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return fromEnvironment(cmd.Flags(), getenv) },
	}
	root.SetOut(out)
	common := root.PersistentFlags()
	common.StringVar(&c.DatabaseURL, "database-url", "", "connection string of the database, as in postgresql://user@host:26257/bmdb. Required")
	common.StringVar(&c.LogLevel, "log-level", "info", "debug, info, warn or error")
	common.StringVar(&c.LogFormat, "log-format", "json", "json or text")
	operator := pflag.NewFlagSet("operator", pflag.ContinueOnError)
	operatorFlags(operator, &c)
	root.Flags().AddFlagSet(operator)

	runCmd := &cobra.Command{Use: "run", Short: "Run the operator (the default)", Args: cobra.NoArgs, RunE: operate}
	runCmd.Flags().AddFlagSet(operator)
	root.AddCommand(runCmd, newMigrate(&c), newAccept(&c), newTakeOver(&c), newGiveUp(&c), newAcknowledge(&c), newReleaseFinalizers(&c), newVersion())
	for _, cmd := range append(root.Commands(), root) {
		describeEnvironment(cmd.Flags())
	}
	describeEnvironment(common)
	return root
}

func operatorFlags(f *pflag.FlagSet, c *Config) {
	f.StringVar(&c.ClusterID, "cluster-id", "", "ID of this cluster among those that share the database; a cloned cluster needs another. Default: the UID of namespace kube-system")
	f.StringSliceVar(&c.Namespaces, "namespaces", nil, "namespaces to serve, separated by commas. Default: all")
	f.DurationVar(&c.ManagerTakeoverAfter, "manager-takeover-after", 10*time.Minute, "how long a cluster may have no live session before this cluster's objects manage in its stead; 0: only by hand (take-over)")
	f.DurationVar(&c.ResyncInterval, "resync-interval", time.Hour, "how often all objects are compared with the database, and rows with objects; each time is drawn around it")
	f.DurationVar(&c.Lease, "lease", 60*time.Second, "how long this pod's session lives in the database without a beat; its machines are taken over within twice that")
	f.IntVar(&c.WorkConcurrency, "work-concurrency", 128, "machines that this pod works on at once")
	f.DurationVar(&c.WorkGrace, "work-grace", 10*time.Second, "how long a worker may take to stop when it is cancelled, and the operator when it is told to end")
	f.DurationVar(&c.StatusInterval, "status-interval", 5*time.Second, "least time between two writes of an object's status; final states are written at once")
	f.BoolVar(&c.AllowSimulated, "allow-simulated", false, "allow ProviderConfigs of type Simulated")
	f.StringVar(&c.AgentDir, "agent-dir", "/usr/share/bmdb", "directory with the agent's binaries, bmdb-agent-linux-<architecture>")
	f.IntVar(&c.Reconciles, "concurrent-reconciles", 16, "objects of each kind that are reconciled at once")
	f.Int32Var(&c.DatabaseConnections, "database-connections", 16, "connections to the database, beside the two that keep the session alive")
	f.StringVar(&c.MetricsAddress, "metrics-bind-address", ":8080", "where metrics are served; 0 serves none")
	f.BoolVar(&c.MetricsSecure, "metrics-secure", false, "serve metrics by HTTPS, to those whom the API server knows by their token and allows to get /metrics")
	f.StringVar(&c.MetricsCertDir, "metrics-cert-dir", "", "directory with tls.crt and tls.key to serve metrics with, read again when they change. Default: a certificate signed by itself")
	f.StringVar(&c.HealthAddress, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served; 0 serves none")
	f.StringVar(&c.Kubeconfig, "kubeconfig", "", "file with the way to the API server. Default: that of the pod, then KUBECONFIG, then ~/.kube/config")
	f.StringVar(&c.PodName, "pod-name", "", "name of this pod, shown in statuses and history. Default: the host's name")
}

// variable is the environment variable of a flag.
func variable(flag string) string {
	return environmentPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func describeEnvironment(flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if suffix := " [" + variable(f.Name) + "]"; f.Name != "help" && !strings.HasSuffix(f.Usage, suffix) {
			f.Usage += suffix
		}
	})
}

// fromEnvironment sets the flags that were not given from their environment variables.
func fromEnvironment(flags *pflag.FlagSet, getenv func(string) string) error {
	var errs []error
	flags.VisitAll(func(f *pflag.Flag) {
		value := getenv(variable(f.Name))
		if f.Changed || value == "" || f.Name == "help" {
			return
		}
		if err := flags.Set(f.Name, value); err != nil {
			errs = append(errs, fmt.Errorf("read %s: %w", variable(f.Name), err))
		}
	})
	return errors.Join(errs...)
}

func newMigrate(c *Config) *cobra.Command {
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "migrate", Args: cobra.NoArgs,
		Short: "Bring the database's schema up to date; the operator itself never does",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.requireDatabase(); err != nil {
				return err
			}
			log, err := c.logger(os.Stderr)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if err := bmdb.Migrate(ctx, c.DatabaseURL, log); err != nil {
				return err
			}
			status, err := bmdb.SchemaStatus(ctx, c.DatabaseURL)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "schema is at version %d\n", status.Version)
			return nil
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long it may take, waiting for another migration included")
	return cmd
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "bmdb-operator %s (%s %s/%s), schema versions %d to %d\n",
				version, runtime.Version(), runtime.GOOS, runtime.GOARCH, migrations.Minimum, migrations.Latest)
			return nil
		},
	}
}
