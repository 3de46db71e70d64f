// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build bmdb_witness

// This file is in no program that is released. With the tag bmdb_witness simulated machines have a witness, whom the fault suite asks what
// was done to them, and by whom.

package drivers

import (
	"os"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/witnessed"
)

// witnessEnv names the environment variable with the URL of the witness. Empty: there is none.
const witnessEnv = "BMDB_WITNESS_URL"

func witness(d provider.Driver) provider.Driver {
	if url := os.Getenv(witnessEnv); url != "" {
		return witnessed.New(d, url)
	}
	return d
}
