// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

func newTakeOver(c *Config) *cobra.Command {
	var namespaces []string
	var to, actor, cause string
	cmd := &cobra.Command{
		Use:   "take-over CLUSTER --to CLUSTER",
		Short: "Pass the managing roles of one cluster to another; audited",
		Long: "take-over makes the objects of one cluster manage machines, claims and providers that another cluster's objects have managed so\n" +
			"far: before a cluster is given up, or when it is gone and --manager-takeover-after is 0. Both are named by their --cluster-id. The\n" +
			"objects of the former manager show what is done from then on. What the new manager has no object for stays with the former.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.requireDatabase(); err != nil {
				return err
			}
			if actor == "" {
				actor = currentUser()
			}
			if actor == "" {
				return errors.New("--actor is required: whose decision is it?")
			}
			log, err := c.logger(os.Stderr)
			if err != nil {
				return err
			}
			db := bmdb.BMDB{Config: bmdb.Config{DatabaseURL: c.DatabaseURL, ComponentName: "bmdb-operator take-over", RuntimeInfo: actor, Logger: log}}
			conn, err := db.Open(false)
			if err != nil {
				return err
			}
			defer conn.Close()
			n, err := conn.TakeOverRoles(cmd.Context(), bmdb.Takeover{From: args[0], To: to, Pools: namespaces, Actor: actor, Cause: cause})
			fmt.Fprintf(cmd.OutOrStdout(), "%d roles of cluster %s passed to cluster %s\n", n, args[0], to)
			return err
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "cluster whose objects are to manage. Required")
	cmd.Flags().StringSliceVar(&namespaces, "namespaces", nil, "namespaces whose roles pass, separated by commas. Default: all")
	cmd.Flags().StringVar(&actor, "actor", "", "who decides; kept in the audit log. Default: this user")
	cmd.Flags().StringVar(&cause, "cause", "taken over by hand", "why; kept in the audit log")
	if err := cmd.MarkFlagRequired("to"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}
