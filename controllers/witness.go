// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package controllers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
	"github.com/bmdb-dev/bmdb-operator/internal/projection"
)

// Objects outlive databases: what the operator last wrote to them, which database and which revision, witnesses against one that is empty, wrong
// or rewound, before it can order anything.

// doubtRetry is how often an object that speaks against the database is looked at again: a person's acknowledgement wakes nobody.
const doubtRetry = 20 * time.Second

// showWithin is over which time objects say what they witness, when it is found that they do.
const showWithin = 2 * time.Second

// Hearer holds what objects remember against the database; a *bmdb.Connection is one.
type Hearer interface {
	Hear(ctx context.Context, testimonies []bmdb.Testimony) ([]bmdb.Alarm, error)
}

// ClaimHearer is a Hearer that can stop a claim while the database is in doubt; a *bmdb.Connection is one.
type ClaimHearer interface {
	Hearer
	SuspendClaim(ctx context.Context, v bmdb.View, pool, key string) error
}

// testimony is what a status remembers. One that is wiped or not a status of ours witnesses nothing.
func (c *Config) testimony(kind, pool, id, database string, revision int64) bmdb.Testimony {
	t := bmdb.Testimony{Kind: kind, Pool: pool, ID: id, Cluster: c.Cluster, Revision: revision}
	if parsed, err := uuid.Parse(database); err == nil {
		t.Database = parsed
	}
	return t
}

func (c *Config) testimonyOf(object client.Object) bmdb.Testimony {
	switch o := object.(type) {
	case *v1alpha1.Machine:
		return c.testimony(bmdb.KindMachine, o.Namespace, o.Status.MachineID, o.Status.DatabaseID, o.Status.Revision)
	case *v1alpha1.WorkClaim:
		t := c.testimony(bmdb.KindClaim, o.Namespace, o.EffectiveKey(), o.Status.DatabaseID, o.Status.Revision)
		t.Final = meta.IsStatusConditionTrue(o.Status.Conditions, string(v1alpha1.ConditionFinished))
		return t
	case *v1alpha1.ProviderConfig:
		return c.testimony(bmdb.KindProvider, o.Namespace, o.Name, o.Status.DatabaseID, o.Status.Revision)
	default:
		return bmdb.Testimony{}
	}
}

// doubt returns what an object says of a database that it speaks against; nil: nothing. The object was read before the row, whose standing is given:
// mostly that tells all. over tells that it is that of a claim that is over.
func (c *Config) doubt(ctx context.Context, hearer Hearer, object client.Object, row bmdb.Standing, over bool) (*projection.Verdict, error) {
	t := c.testimonyOf(object)
	if t.Database == uuid.Nil || t.Database == row.Database && t.Revision <= row.Revision && (!t.Final || over) {
		return nil, nil
	}
	alarms, err := hearer.Hear(ctx, []bmdb.Testimony{t})
	if err != nil || len(alarms) == 0 {
		return nil, err
	}
	v := projection.Verdict{State: projection.Stalled, Reason: v1alpha1.Reason(alarms[0].Reason)}
	wayOut := "Nothing destructive is done in its namespace until a person has looked and runs bmdb-operator acknowledge-database."
	if t.Kind == bmdb.KindClaim {
		wayOut = "Nothing is done for it, and nothing destructive in its namespace, until a person has looked and runs bmdb-operator acknowledge-database."
	}
	if alarms[0].Reason == bmdb.DatabaseChanged {
		v.Message = fmt.Sprintf("It was last shown by database %s; the operator's database is another. %s", t.Database, wayOut)
	} else {
		v.Message = fmt.Sprintf("It was last shown revision %d, which the database has not reached: it was restored from an older copy. %s", t.Revision, wayOut)
	}
	return &v, nil
}

// Witness holds all objects of the namespaces that are served against the database. What speaks against it is recorded there, where it
// holds back all programs. Nothing is to be started before it has succeeded under a new session: a database that was exchanged or
// restored knows no session of before.
func (o *Objects) Witness(ctx context.Context) error {
	var providers v1alpha1.ProviderConfigList
	var machines v1alpha1.MachineList
	var claims v1alpha1.WorkClaimList
	for _, list := range []client.ObjectList{&providers, &machines, &claims} {
		if err := o.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return fmt.Errorf("list objects that witness: %w", err)
		}
	}
	var all []bmdb.Testimony
	var names []witness
	add := func(object client.Object) {
		if t := o.config.testimonyOf(object); t.Database != uuid.Nil && o.config.serves(t.Pool) {
			all = append(all, t)
			names = append(names, witness{t.Kind, client.ObjectKeyFromObject(object), readySince(object)})
		}
	}
	for i := range providers.Items {
		add(&providers.Items[i])
	}
	for i := range machines.Items {
		add(&machines.Items[i])
	}
	for i := range claims.Items {
		add(&claims.Items[i])
	}
	alarms, err := o.store.Hear(ctx, all)
	if err != nil {
		return err
	}
	if len(alarms) > 0 {
		o.log.Info("objects speak against the database; see bmdb-operator acknowledge-database --help", "objects", len(alarms), "of", len(all), "reason", alarms[0].Reason,
			"example", alarms[0].Kind+" "+alarms[0].Pool+"/"+alarms[0].ID)
		o.show(all, names, alarms)
	}
	o.newest.begin(names)
	return nil
}

// show lets the controllers look at the objects of alarms, which then say so.
func (o *Objects) show(all []bmdb.Testimony, names []witness, alarms []bmdb.Alarm) {
	alarmed := make(map[bmdb.Testimony]bool, len(alarms))
	for _, a := range alarms {
		alarmed[a.Testimony] = true
	}
	for i, t := range all {
		if alarmed[t] {
			o.inboxOf(t.Kind).add(names[i].key, rand.N(showWithin))
		}
	}
}

func (o *Objects) inboxOf(kind string) *inbox {
	switch kind {
	case bmdb.KindMachine:
		return &o.machines
	case bmdb.KindClaim:
		return &o.claims
	default:
		return &o.providers
	}
}

// KeepWitnessing holds the objects that were shown something last against the database, about every so often, until ctx is done: a database that is
// rewound under a session that it still knows ends no session. What it has lost is what was done last, so that few objects tell; when one of
// them does, all are asked.
func (o *Objects) KeepWitnessing(ctx context.Context, every time.Duration) {
	doubtful := false
	for {
		t := time.NewTimer(jitter(every))
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		alarmed, err := o.witnessNewest(ctx)
		if err == nil && alarmed && !doubtful {
			err = o.Witness(ctx)
		}
		switch {
		case err == nil:
			doubtful = alarmed
		case ctx.Err() == nil:
			o.log.Info("cannot compare objects with the database; it is tried again", "error", err.Error())
		}
	}
}

// witnessNewest holds the newest objects against the database, in one statement.
func (o *Objects) witnessNewest(ctx context.Context) (alarmed bool, err error) {
	var all []bmdb.Testimony
	for _, w := range o.newest.latest() {
		object := w.object()
		if err := o.client.Get(ctx, w.key, object); client.IgnoreNotFound(err) != nil {
			return false, fmt.Errorf("get object that witnesses: %w", err)
		} else if err != nil {
			continue
		}
		if t := o.config.testimonyOf(object); t.Database != uuid.Nil && o.config.serves(t.Pool) {
			all = append(all, t)
		}
	}
	alarms, err := o.store.Hear(ctx, all)
	return len(alarms) > 0, err
}
