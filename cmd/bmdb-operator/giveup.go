// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

func newGiveUp(c *Config) *cobra.Command {
	var g bmdb.GiveUp
	var yes bool
	cmd := &cobra.Command{
		Use:   "give-up CLUSTER",
		Short: "End what the objects of a cluster that is gone for good say; audited",
		Long: "give-up lists the views that a cluster, named by its --cluster-id, has of machines, claims and providers, and with --yes ends them as if\n" +
			"its objects had been deleted: its suspends and limits do not count any more, its managing roles pass to the clusters that are left,\n" +
			"machines that have no other view are left alone, and works of claims that have none are cancelled. What was done stays. It is refused\n" +
			"while the cluster has live sessions; with --origin it ends only views of objects that were in a former API server of the cluster, which\n" +
			"may live. Interrupted, it goes on when it is run again. A cluster that comes back attaches its objects as new.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			g.Cluster = args[0]
			conn, err := c.openFor("give-up", &g.Actor)
			if err != nil {
				return err
			}
			defer conn.Close()
			out := cmd.OutOrStdout()
			if !yes {
				counts, err := conn.CountViews(cmd.Context(), g.Cluster, g.Pools)
				if err != nil {
					return err
				}
				return showViews(out, &g, counts)
			}
			done, err := conn.GiveUpViews(cmd.Context(), g, func(done bmdb.GivenUp) {
				fmt.Fprintf(cmd.ErrOrStderr(), "given up so far: %s\n", givenUp(done))
			})
			fmt.Fprintf(out, "gave up %s of cluster %s for %s\n", givenUp(done), g.Cluster, g.Actor)
			return err
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "give up; without it the views are listed only")
	cmd.Flags().StringSliceVar(&g.Pools, "namespaces", nil, "namespaces in which views end, separated by commas. Default: all")
	cmd.Flags().StringVar(&g.Origin, "origin", "", "end only views of objects that were in this API server, named by the UID of its namespace kube-system. Default: any")
	cmd.Flags().StringVar(&g.Actor, "actor", "", "who decides; kept in the audit log. Default: this user")
	cmd.Flags().StringVar(&g.Cause, "cause", "given up by hand", "why; kept in the audit log")
	return cmd
}

func givenUp(done bmdb.GivenUp) string {
	return fmt.Sprintf("views of %d machines, %d claims and %d providers", done.Machines, done.Claims, done.Providers)
}

// showViews lists what would be given up.
func showViews(out io.Writer, g *bmdb.GiveUp, counts []bmdb.ClusterViews) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "KIND\tNAMESPACE\tORIGIN\tVIEWS\tMANAGE\tLAST\tSUSPEND")
	var all bmdb.ClusterViews
	for _, v := range counts {
		if g.Origin != "" && v.Origin != g.Origin {
			continue
		}
		origin := v.Origin
		if origin == "" {
			origin = "-"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d\t%d\t%d\n", v.Kind, v.Pool, origin, v.Views, v.Manages, v.Last, v.Suspends)
		all.Views, all.Last, all.Suspends = all.Views+v.Views, all.Last+v.Last, all.Suspends+v.Suspends
	}
	if all.Views == 0 {
		fmt.Fprintf(out, "there are no such views of cluster %s\n", g.Cluster)
		return nil
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "\nCluster %s has %d such views. LAST: those without another beside them, %d; without them machines are left alone, works of claims are\n"+
		"cancelled, limits end. SUSPEND: those that suspend a claim that another cluster has too, %d; without them it may go on.\n"+
		"If what they were of is gone for good, say so with --yes.\n",
		g.Cluster, all.Views, all.Last, all.Suspends)
	return err
}
