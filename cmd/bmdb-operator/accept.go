// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// What can be accepted.
const (
	acceptHostKey = "host-key"
	acceptOwner   = "owner"
)

func newAccept(c *Config) *cobra.Command {
	var namespace, actor string
	acceptable := []string{acceptHostKey, acceptOwner}
	cmd := &cobra.Command{
		Use:   "accept MACHINE host-key|owner",
		Short: "Accept what a machine shows and the operator refuses; audited",
		Long: "accept says that a person has looked and found it right: with host-key, that a machine shows another host key than the pinned\n" +
			"one; with owner, that the host is this machine although its owner file names another machine or database. The next work on\n" +
			"the machine takes it as it finds it, and need not wait for a backoff. A quarantine stays: raise the claim's maxAttempts.",
		Args: cobra.ExactArgs(2), ValidArgs: acceptable,
		RunE: func(cmd *cobra.Command, args []string) error {
			machine, what := args[0], args[1]
			if !slices.Contains(acceptable, what) {
				return fmt.Errorf("cannot accept %q: use %s", what, strings.Join(acceptable, " or "))
			}
			conn, err := c.openFor("accept", &actor)
			if err != nil {
				return err
			}
			defer conn.Close()
			accept := conn.AcceptHostKey
			if what == acceptOwner {
				accept = conn.AcceptOwner
			}
			if err := accept(cmd.Context(), namespace, machine, actor); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "accepted the %s of machine %s/%s for %s\n", what, namespace, machine, actor)
			return nil
		},
	}
	cmd.Flags().StringVarP(&namespace, "namespace", "n", "default", "namespace of the machine, which is its pool")
	cmd.Flags().StringVar(&actor, "actor", "", "who accepts; kept in the audit log. Default: this user")
	return cmd
}

// openFor opens the database for a command by which a person decides something. actor becomes this user if it is empty. The caller closes the
// connection.
func (c *Config) openFor(command string, actor *string) (*bmdb.Connection, error) {
	if err := c.requireDatabase(); err != nil {
		return nil, err
	}
	if *actor == "" {
		*actor = currentUser()
	}
	if *actor == "" {
		return nil, errors.New("--actor is required: whose decision is it?")
	}
	log, err := c.logger(os.Stderr)
	if err != nil {
		return nil, err
	}
	db := bmdb.BMDB{Config: bmdb.Config{DatabaseURL: c.DatabaseURL, ComponentName: "bmdb-operator " + command, RuntimeInfo: *actor, Logger: log}}
	return db.Open(false)
}

func currentUser() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}
