// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// A claim without Kubernetes: start the agent on every machine of a pool, two at a time, whatever other programs do meanwhile. Run it on
// several hosts, and each machine still is done once; kill the one that owns the claim, and another goes on where it stood.
func ExampleSession_ClaimRound() {
	ctx := context.Background()
	conn, cleanup := exampleDatabase(ctx, 5)
	defer cleanup()
	session, err := conn.StartSession(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer session.Close(ctx)

	claim := bmdb.ClaimSpec{Pool: "default", Key: "agents-2026-11", Process: "AgentStart", Mode: bmdb.ModeDrain, Selector: &bmdb.Selector{}, Parallelism: 2}
	if _, err := conn.AttachClaim(ctx, bmdb.View{Name: "example"}, claim, true); err != nil {
		log.Fatal(err)
	}
	owned, err := session.OwnClaims(ctx, 10)
	if err != nil {
		log.Fatal(err)
	}
	for _, o := range owned {
		for {
			works, err := session.ClaimRound(ctx, o, 64)
			for _, work := range works {
				if key, err := startAgent(work.Context(), work.Machine); err != nil {
					_ = work.Fail(ctx, o.Spec.Backoff(), err.Error())
				} else if err := work.FinishData(ctx, bmdb.Outcome{AgentPublicKey: key}); err != nil {
					log.Print(err) // somebody else has the machine now
				}
			}
			if err == nil {
				continue
			} else if !errors.Is(err, bmdb.ErrNothingToDo) {
				log.Fatal(err)
			}
			outlook, err := session.ReviewClaim(ctx, o)
			if err != nil {
				log.Fatal(err)
			}
			if outlook.State != bmdb.ClaimRunning {
				fmt.Println(outlook.State+":", outlook.Message)
				break
			}
			// A program waits for outlook.RetryAfter here, and shows outlook.Message meanwhile.
		}
	}
	// Output: Complete: 5 machines done
}
