// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/retry"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/controllers"
)

const (
	finalizerPrefix = "bmdb.dev/"
	// listPage is how many objects are asked for at once.
	listPage = 500
)

func newReleaseFinalizers(c *Config) *cobra.Command {
	var r releaser
	var confirmed bool
	cmd := &cobra.Command{
		Use: "release-finalizers", Args: cobra.NoArgs,
		Short: "Take the operator's finalizers off all objects, for uninstalling it",
		Long: "release-finalizers removes all finalizers that begin with " + finalizerPrefix + " from all objects of group " + v1alpha1.GroupName + ", and no others, so that\n" +
			"none of them waits for an operator that is gone. It deletes nothing; objects that were deleted already go. Stop the operator before:\n" +
			"one that runs puts them back. It needs no database, and the rights of an administrator of the cluster.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !confirmed && !r.dryRun {
				return errors.New("release-finalizers is for uninstalling: use --dry-run to see what it would do, and --yes to do it")
			}
			config, err := c.restConfig()
			if err != nil {
				return err
			}
			r.out = cmd.OutOrStdout()
			return r.run(cmd.Context(), config)
		},
	}
	cmd.Flags().StringSliceVar(&r.namespaces, "namespaces", nil, "namespaces to go through, separated by commas. Default: all")
	cmd.Flags().BoolVar(&r.dryRun, "dry-run", false, "show what would be done, and do nothing")
	cmd.Flags().BoolVar(&confirmed, "yes", false, "do it")
	cmd.Flags().StringVar(&c.Kubeconfig, "kubeconfig", "", "file with the way to the API server. Default: that of the pod, then KUBECONFIG, then ~/.kube/config")
	return cmd
}

// releaser takes the operator's finalizers off objects. It is not for concurrent use.
type releaser struct {
	namespaces []string // empty: all
	dryRun     bool
	page       int64 // objects asked for at once; 0: listPage
	out        io.Writer
}

// errReturned says that somebody has put finalizers on objects while they were taken off.
var errReturned = errors.New("a finalizer came back; is an operator still running? Stop it and try again")

func (r *releaser) run(ctx context.Context, config *rest.Config) error {
	client, err := metadata.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("release finalizers: %w", err)
	}
	kinds, err := servedKinds(config)
	if err != nil {
		return fmt.Errorf("release finalizers: %w", err)
	}
	namespaces := r.namespaces
	if len(namespaces) == 0 {
		namespaces = []string{metav1.NamespaceAll}
	}
	// Each object is tried, whatever becomes of the others.
	var errs []error
	released := 0
	for _, kind := range kinds {
		for _, namespace := range namespaces {
			n, err := r.releaseAll(ctx, client, kind, namespace)
			released += n
			errs = append(errs, err)
		}
	}
	if r.dryRun {
		fmt.Fprintf(r.out, "would release %d objects; nothing was changed\n", released)
		return errors.Join(errs...)
	}
	fmt.Fprintf(r.out, "released %d objects\n", released)
	if released > 0 {
		errs = append(errs, r.verify(ctx, client, kinds, namespaces))
	}
	return errors.Join(errs...)
}

// servedKind is a kind of our group that the API server serves.
type servedKind struct {
	resource schema.GroupVersionResource
	name     string
}

// servedKinds finds what is there, which may be less than this version knows, or more.
func servedKinds(config *rest.Config) ([]servedKind, error) {
	client, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, err
	}
	groups, err := client.ServerGroups()
	if err != nil {
		return nil, fmt.Errorf("find served groups: %w", err)
	}
	kinds := map[string]servedKind{} // by resource: one that is served in several versions is one
	for _, group := range groups.Groups {
		if group.Name != v1alpha1.GroupName {
			continue
		}
		for _, version := range group.Versions {
			resources, err := client.ServerResourcesForGroupVersion(version.GroupVersion)
			if apierrors.IsNotFound(err) {
				continue // gone a moment ago
			}
			if err != nil {
				return nil, fmt.Errorf("find kinds of %s: %w", version.GroupVersion, err)
			}
			for i := range resources.APIResources {
				if kind := &resources.APIResources[i]; !strings.Contains(kind.Name, "/") {
					kinds[kind.Name] = servedKind{schema.GroupVersionResource{Group: group.Name, Version: version.Version, Resource: kind.Name}, kind.Kind}
				}
			}
		}
	}
	sorted := make([]servedKind, 0, len(kinds))
	for _, kind := range kinds {
		sorted = append(sorted, kind)
	}
	slices.SortFunc(sorted, func(a, b servedKind) int { return strings.Compare(a.name, b.name) })
	return sorted, nil
}

// releaseAll goes through the objects of a kind in a namespace, and returns how many had a finalizer of ours.
func (r *releaser) releaseAll(ctx context.Context, client metadata.Interface, kind servedKind, namespace string) (released int, err error) {
	var errs []error
	err = r.each(ctx, client, kind, namespace, func(object *metav1.PartialObjectMetadata) {
		ours := finalizersOf(object)
		if len(ours) == 0 {
			return
		}
		if !r.dryRun {
			if err := release(ctx, client.Resource(kind.resource).Namespace(object.Namespace), object); err != nil {
				errs = append(errs, fmt.Errorf("release %s %s/%s: %w", kind.name, object.Namespace, object.Name, err))
				return
			}
		}
		released++
		state := ""
		if object.DeletionTimestamp != nil {
			state = ", which is being deleted"
		}
		fmt.Fprintf(r.out, "%s %s/%s: %s%s\n", kind.name, object.Namespace, object.Name, strings.Join(ours, ", "), state)
	})
	return released, errors.Join(append(errs, err)...)
}

// each calls visit with all objects of a kind in a namespace, a page at a time. A kind that is no longer served has none.
func (r *releaser) each(ctx context.Context, client metadata.Interface, kind servedKind, namespace string, visit func(*metav1.PartialObjectMetadata)) error {
	options := metav1.ListOptions{Limit: r.page}
	if options.Limit == 0 {
		options.Limit = listPage
	}
	for {
		list, err := client.Resource(kind.resource).Namespace(namespace).List(ctx, options)
		switch {
		case apierrors.IsNotFound(err):
			return nil
		case apierrors.IsResourceExpired(err) && options.Continue != "":
			options.Continue = "" // too long ago: once more, what is done already costs nothing
			continue
		case err != nil:
			return fmt.Errorf("list %s: %w", kind.resource.GroupResource(), err)
		}
		for i := range list.Items {
			visit(&list.Items[i])
		}
		if options.Continue = list.Continue; options.Continue == "" {
			return nil
		}
	}
}

// verify sees that no finalizer has come back.
func (r *releaser) verify(ctx context.Context, client metadata.Interface, kinds []servedKind, namespaces []string) error {
	returned := 0
	var errs []error
	for _, kind := range kinds {
		for _, namespace := range namespaces {
			errs = append(errs, r.each(ctx, client, kind, namespace, func(object *metav1.PartialObjectMetadata) {
				if len(finalizersOf(object)) > 0 {
					returned++
				}
			}))
		}
	}
	if returned > 0 {
		errs = append(errs, fmt.Errorf("%d objects: %w", returned, errReturned))
	}
	return errors.Join(errs...)
}

// finalizersOf returns the finalizers of an object that are ours.
func finalizersOf(object metav1.Object) (ours []string) {
	for _, f := range object.GetFinalizers() {
		if strings.HasPrefix(f, finalizerPrefix) {
			ours = append(ours, f)
		}
	}
	return ours
}

// release takes our finalizers off one object and leaves those of others, which may come and go meanwhile.
func release(ctx context.Context, client metadata.ResourceInterface, object *metav1.PartialObjectMetadata) error {
	latest := object
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		others := slices.DeleteFunc(slices.Clone(latest.Finalizers), func(f string) bool { return strings.HasPrefix(f, finalizerPrefix) })
		patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
			// What was seen is what is changed: an object of the same name, or another list, is not.
			"uid": latest.UID, "resourceVersion": latest.ResourceVersion, "finalizers": others,
			"annotations": map[string]any{controllers.AnnotationTerm: nil}, // says who relies on the finalizer
		}})
		if err != nil {
			return err
		}
		_, err = client.Patch(ctx, latest.Name, types.MergePatchType, patch, metav1.PatchOptions{})
		if !apierrors.IsConflict(err) {
			return err
		}
		current, readErr := client.Get(ctx, latest.Name, metav1.GetOptions{})
		if readErr != nil {
			return readErr
		}
		if current.UID != object.UID || len(finalizersOf(current)) == 0 {
			return nil
		}
		latest = current
		return err
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
