// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"encoding/json"
	"fmt"

	"github.com/google/uuid"
)

// MaxOwnerBytes bounds an owner file.
const MaxOwnerBytes = 64 << 10

// Owner says whose a machine is. It is written to the machine before anything
// else, and read before anything is written: a machine that belongs to another
// database, or is another machine of ours, is left alone.
type Owner struct {
	// DatabaseID and MachineID are the identity; never nil UUIDs.
	DatabaseID uuid.UUID `json:"databaseID"`
	MachineID  uuid.UUID `json:"machineID"`
	// Pool, Name, Provider and ProviderID are for people who read the file on
	// the machine. Nothing is decided from them; they may be empty or stale.
	Pool       string `json:"pool,omitempty"`
	Name       string `json:"name,omitempty"`
	Provider   string `json:"provider,omitempty"`
	ProviderID string `json:"providerID,omitempty"`
}

// ParseOwner reads an owner file. Members that it does not know are ignored,
// so that a later version may add some; everything else that is not exactly an
// owner file is an error.
func ParseOwner(data []byte) (Owner, error) {
	var o Owner
	members, err := parseObject(data, MaxOwnerBytes)
	if err != nil {
		return Owner{}, fmt.Errorf("parse owner file: %w", err)
	}
	for name, id := range map[string]*uuid.UUID{"databaseID": &o.DatabaseID, "machineID": &o.MachineID} {
		var s string
		if err := member(members, name, &s); err != nil {
			return Owner{}, fmt.Errorf("parse owner file: %w", err)
		}
		// uuid.Parse takes other notations too; we write only this one.
		if *id, err = uuid.Parse(s); err != nil || len(s) != 36 || *id == uuid.Nil {
			return Owner{}, fmt.Errorf("parse owner file: member %q is no UUID", name)
		}
	}
	for name, s := range map[string]*string{"pool": &o.Pool, "name": &o.Name, "provider": &o.Provider, "providerID": &o.ProviderID} {
		if err := optional(members, name, s); err != nil {
			return Owner{}, fmt.Errorf("parse owner file: %w", err)
		}
	}
	return o, nil
}

// Encode returns the owner as the content of an owner file.
func (o Owner) Encode() ([]byte, error) {
	b, err := json.MarshalIndent(o, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode owner file of machine %s: %w", o.MachineID, err)
	}
	return append(b, '\n'), nil
}
