// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package drivers

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/bmdb"
)

// Candidates returns the providers that the machines of a claim may have, in order: the one that it names, else those of the machines that
// it names, else all of the pool's.
func (o *Opener) Candidates(ctx context.Context, spec *bmdb.ClaimSpec) ([]string, error) {
	if spec.Provider != "" {
		return []string{spec.Provider}, nil
	}
	var names []string
	for _, name := range spec.Names {
		var m v1alpha1.Machine
		err := o.cached.Get(ctx, client.ObjectKey{Namespace: spec.Pool, Name: name}, &m)
		switch {
		case err == nil:
			names = append(names, m.Spec.ProviderRef.Name)
		case !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("get Machine %s/%s: %w", spec.Pool, name, err)
		}
	}
	if len(names) == 0 {
		// Also where none of the machines that it names is here: they may have no objects.
		var configs v1alpha1.ProviderConfigList
		if err := o.cached.List(ctx, &configs, client.InNamespace(spec.Pool)); err != nil {
			return nil, fmt.Errorf("list ProviderConfigs of namespace %s: %w", spec.Pool, err)
		}
		for i := range configs.Items {
			names = append(names, configs.Items[i].Name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}
