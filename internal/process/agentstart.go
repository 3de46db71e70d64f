// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"crypto/ed25519"
	"fmt"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// AgentStart starts the agent on a machine and records its key, and what the agent says about the machine. An agent that runs already is
// found and left alone.
type AgentStart struct{}

// Perform implements Process.
func (AgentStart) Perform(ctx context.Context, t Task) (bmdb.Outcome, error) {
	agent, err := t.Driver.StartAgent(ctx, t.Machine, t.Steps)
	if err != nil {
		return bmdb.Outcome{}, err
	}
	// An agent is authenticated by this key later on: better none than a wrong one.
	if len(agent.PublicKey) != ed25519.PublicKeySize {
		return bmdb.Outcome{}, &provider.Error{
			Reason:  provider.ReasonAgentFailed,
			Message: fmt.Sprintf("the agent's public key has %d bytes instead of %d", len(agent.PublicKey), ed25519.PublicKeySize),
		}
	}
	return bmdb.Outcome{AgentPublicKey: agent.PublicKey, HardwareReport: agent.Facts}, nil
}
