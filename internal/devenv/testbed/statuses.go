// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package testbed

import (
	"context"
	"errors"
	"fmt"

	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
)

// VerifyStatuses waits until the status of every claim says what the database does.
func (l *Lab) VerifyStatuses() {
	l.T.Helper()
	l.Eventually(Patience, "statuses say what the database does", func(ctx context.Context) error {
		var list v1alpha1.WorkClaimList
		if err := l.Client.List(ctx, &list, client.InNamespace(l.Namespace)); err != nil {
			return err
		}
		var errs []error
		for i := range list.Items {
			if err := l.CompareClaim(ctx, &list.Items[i]); err != nil {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs[:min(len(errs), 5)]...)
	})
}

// CompareClaim returns an error unless the status of a claim that is over says what the database does. It is safe for concurrent use.
func (l *Lab) CompareClaim(ctx context.Context, c *v1alpha1.WorkClaim) error {
	var state, progress string
	var succeeded, failed, active int32
	var rev int64
	if err := l.DB.QueryRow(ctx, `SELECT state, succeeded + skipped, failed, active, rev, (succeeded + skipped) || '/' || completions
		FROM claims WHERE pool = $1 AND claim_key = $2`, c.Namespace, c.EffectiveKey()).Scan(&state, &succeeded, &failed, &active, &rev, &progress); err != nil {
		return err
	}
	s := &c.Status
	got := fmt.Sprint(ptr.Deref(s.Succeeded, -1), ptr.Deref(s.Failed, -1), ptr.Deref(s.Active, -1), s.Revision, s.Progress,
		IsTrue(s.Conditions, v1alpha1.ConditionFinished), IsTrue(s.Conditions, v1alpha1.ConditionComplete), IsTrue(s.Conditions, v1alpha1.ConditionFailed))
	want := fmt.Sprint(succeeded, failed, active, rev, progress, true, state == "Complete", state == "Failed")
	if got != want {
		return fmt.Errorf("claim %s shows %s, the database has %s", c.Name, got, want)
	}
	return nil
}
