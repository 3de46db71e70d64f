// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package faults_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/bmdb-dev/bmdb-operator/internal/devenv/postgres"
	"github.com/bmdb-dev/bmdb-operator/internal/devenv/testbed"
)

// TestF5 ends the database at once, without a checkpoint, and starts it again, while machines are worked on. Nothing that was acknowledged is
// lost, and the operators go on without being started again.
func TestF5(t *testing.T) {
	t.Parallel()
	server, err := postgres.Start(t.Context(), serverOptions())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	database, err := server.CreateDatabase(t.Context(), "bmdb")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, "F5", rigOptions{Options: testbed.Options{Database: database}})
	if out, err := r.Run(database, "migrate"); err != nil {
		t.Fatalf("migrate: %v\n%s", err, out)
	}
	r.start()
	r.fleet(50*time.Millisecond, 10)
	r.watchRules()
	work := r.feed(24)
	for range pick(3, 15) {
		before := r.Count(finishedWorks)
		r.Eventually(testbed.Patience, "works are finished again", func(ctx context.Context) error {
			n, err := r.Number(ctx, finishedWorks)
			if err == nil && n < before+10 {
				err = fmt.Errorf("%d since", n-before)
			}
			return err
		})
		r.during(time.Duration(r.random.Int64N(int64(time.Second))))
		if err := server.Restart(t.Context(), postgres.Immediate); err != nil {
			t.Fatal(err)
		}
		r.DB.Reset()
		r.struck("restarted")
	}
	work.stop()
	for _, p := range r.pods {
		if err := p.process.Load().Err(); err != nil {
			t.Errorf("%s has ended: %v", p.Name, err)
		}
	}
	r.awaitReady()
	r.verify()
	r.verifyAcknowledged()
	r.require("restarted", "works whose end was acknowledged")
}

const finishedWorks = "SELECT count(*) FROM work_history WHERE event = 'Finished'"
