// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

//go:build !bmdb_witness

package drivers

import "github.com/bmdb-dev/bmdb-operator/internal/provider"

// witness returns a driver as it is. See witness.go for what the fault suite has in its place.
func witness(d provider.Driver) provider.Driver { return d }
