// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// alarmsShown bounds what is listed: all have the same cause.
const alarmsShown = 50

func newAcknowledge(c *Config) *cobra.Command {
	var yes bool
	var actor, cause, withdraw string
	cmd := &cobra.Command{
		Use:   "acknowledge-database",
		Short: "Say that the database counts although objects remember another or a later one; audited",
		Long: "acknowledge-database lists the objects that speak against the database: DatabaseChanged, because they were last shown by another one,\n" +
			"and DatabaseRewound, because they were shown later revisions than it has. Until a person has looked, nothing destructive starts in their\n" +
			"namespaces. If the URL is wrong, mend the URL instead. With --yes the database is taken as it is: what was done since the older copy, or\n" +
			"in the other database, is forgotten, and may be done again.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			conn, err := c.openFor("acknowledge-database", &actor)
			if err != nil {
				return err
			}
			defer conn.Close()
			if !yes {
				return showAlarms(cmd, conn)
			}
			if withdraw != "" {
				n, err := conn.WithdrawAlarms(cmd.Context(), withdraw, actor, cause)
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "withdrew %d alarms of cluster %s for %s; nothing was acknowledged\n", n, withdraw, actor)
				return nil
			}
			n, err := conn.AcknowledgeDatabase(cmd.Context(), actor, cause)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "acknowledged database %s for %s; %d alarms ended\n", conn.Identity().ID, actor, n)
			return nil
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "acknowledge; without it the alarms are listed only")
	cmd.Flags().StringVar(&withdraw, "withdraw", "", "instead end the alarms of this cluster, whose operator had the wrong URL; nothing is acknowledged")
	cmd.Flags().StringVar(&actor, "actor", "", "who decides; kept in the audit log. Default: this user")
	cmd.Flags().StringVar(&cause, "cause", "decided by hand", "why; kept in the audit log")
	return cmd
}

func showAlarms(cmd *cobra.Command, conn *bmdb.Connection) error {
	alarms, err := conn.Alarms(cmd.Context(), alarmsShown)
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	if len(alarms) == 0 {
		fmt.Fprintf(out, "nothing speaks against database %s\n", conn.Identity().ID)
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "REASON\tKIND\tNAMESPACE\tID\tCLUSTER\tDATABASE\tREVISION\tNOTICED")
	for _, a := range alarms {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", a.Reason, a.Kind, a.Pool, a.ID, a.Cluster, a.Database, a.Revision, a.At.UTC().Format(time.RFC3339))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if len(alarms) == alarmsShown {
		fmt.Fprintf(out, "... and perhaps more; the first %d are shown\n", alarmsShown)
	}
	fmt.Fprintf(out, "\nIf database %s is the right one, in the right state, say so with --yes.\n", conn.Identity().ID)
	return nil
}
