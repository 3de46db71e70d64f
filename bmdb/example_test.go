// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package bmdb_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/bmdb/model"
)

// A worker that starts agents: it takes one machine after the other, until none needs it.
func Example() {
	ctx := context.Background()
	conn, closeConn := exampleDatabase(ctx, 2)
	defer closeConn()

	session, err := conn.StartSession(ctx)
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		if err := session.Close(ctx); err != nil {
			log.Print(err)
		}
	}()
	for {
		work, err := session.Work(ctx, model.ProcessAgentStart, func(q *model.Queries) ([]uuid.UUID, error) {
			machines, err := q.GetMachinesForAgentStart(ctx, 10)
			var ids []uuid.UUID
			for _, m := range machines {
				ids = append(ids, m.MachineID)
			}
			return ids, err
		})
		if errors.Is(err, bmdb.ErrNothingToDo) {
			fmt.Println("no machine needs an agent")
			return
		}
		if err != nil {
			log.Fatal(err)
		}
		key, err := startAgent(work.Context(), work.Machine) // the side effects, under the lock
		if err != nil {
			_ = work.Fail(ctx, &bmdb.Backoff{Initial: time.Minute, Maximum: time.Hour, Exponent: 2}, err.Error())
			continue
		}
		if err := work.FinishData(ctx, bmdb.Outcome{AgentPublicKey: key}); err != nil {
			log.Fatal(err) // bmdb.ErrWorkLost: somebody else has the machine now
		}
		fmt.Println("started an agent")
	}
	// Output:
	// started an agent
	// started an agent
	// no machine needs an agent
}

func startAgent(ctx context.Context, _ uuid.UUID) ([]byte, error) {
	return []byte("an ed25519 key"), ctx.Err()
}
