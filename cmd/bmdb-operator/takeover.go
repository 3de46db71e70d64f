// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

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
			if to == "" {
				return errors.New("--to is required: the objects of which cluster are to manage?")
			}
			conn, err := c.openFor("take-over", &actor)
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
	return cmd
}
