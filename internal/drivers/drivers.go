// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package drivers opens the drivers of ProviderConfigs. It reads what a ProviderConfig names, its Secret and its list of known hosts, at
// each opening and from the API server itself: a change needs no restart, and the operator keeps no Secret.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/bmdb-dev/bmdb-operator/api/v1alpha1"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/simulated"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/ssh"
)

// Settings are a ProviderConfig's spec, with what it names.
type Settings struct {
	Spec v1alpha1.ProviderConfigSpec
	// PrivateKey and KnownHosts are those of type SSH.
	PrivateKey, KnownHosts []byte
}

// NewRegistry returns the drivers of this version. agents opens the agent's binaries.
func NewRegistry(agents ssh.AgentBinary, allowSimulated bool) provider.Registry[Settings] {
	registry := provider.Registry[Settings]{
		string(v1alpha1.ProviderTypeSSH): func(s Settings) (provider.Driver, error) {
			return ssh.New(ssh.Config{
				User: s.Spec.SSH.User, PrivateKey: s.PrivateKey, KnownHosts: s.KnownHosts, AgentBinary: agents,
				TrustOnFirstUse: s.Spec.SSH.HostKeys.Policy == v1alpha1.HostKeyPolicyTrustOnFirstUse,
			})
		},
	}
	if allowSimulated {
		registry[string(v1alpha1.ProviderTypeSimulated)] = func(s Settings) (provider.Driver, error) {
			c := s.Spec.Simulated
			if c == nil {
				c = &v1alpha1.SimulatedProvider{}
			}
			d, err := simulated.New(simulated.Config{
				Latency:        time.Duration(value(c.LatencyMilliseconds)) * time.Millisecond,
				FailurePercent: int(value(c.FailurePercent)), HangPercent: int(value(c.HangPercent)), Seed: value(c.Seed),
			})
			if err != nil {
				return nil, err
			}
			return witness(d), nil
		}
	}
	return registry
}

func value[T any](p *T) (v T) {
	if p != nil {
		v = *p
	}
	return v
}

// NotReadyError says why a ProviderConfig cannot be used until a person has acted.
type NotReadyError struct {
	// Provider is the name of the ProviderConfig.
	Provider string
	// Reason and Message are those of its condition Ready.
	Reason  v1alpha1.Reason
	Message string
}

func (e *NotReadyError) Error() string {
	return fmt.Sprintf("provider %s is not ready: %s: %s", e.Provider, e.Reason, e.Message)
}

// NeedsPerson tells that it does not pass by itself.
func (e *NotReadyError) NeedsPerson() bool { return true }

// Opener opens drivers. It is safe for concurrent use.
type Opener struct {
	cached   client.Reader // ProviderConfigs
	live     client.Reader // Secrets and ConfigMaps
	registry provider.Registry[Settings]
	known    known
}

// NewOpener returns an opener that finds ProviderConfigs through cached, and what they name through live, which must not cache.
func NewOpener(cached, live client.Reader, registry provider.Registry[Settings]) *Opener {
	return &Opener{cached: cached, live: live, registry: registry}
}

// Open opens the driver of a provider of a pool. A *NotReadyError needs a person; any other error may pass by itself. The caller closes
// the driver.
func (o *Opener) Open(ctx context.Context, pool, name string) (provider.Driver, error) {
	var config v1alpha1.ProviderConfig
	err := o.cached.Get(ctx, client.ObjectKey{Namespace: pool, Name: name}, &config)
	switch {
	case apierrors.IsNotFound(err):
		return nil, &NotReadyError{Provider: name, Reason: v1alpha1.ReasonProviderNotReady, Message: fmt.Sprintf("there is no ProviderConfig %s in namespace %s", name, pool)}
	case err != nil:
		return nil, fmt.Errorf("get ProviderConfig %s/%s: %w", pool, name, err)
	}
	return o.OpenConfig(ctx, &config)
}

// OpenConfig is Open for a ProviderConfig that was read already.
func (o *Opener) OpenConfig(ctx context.Context, config *v1alpha1.ProviderConfig) (provider.Driver, error) {
	settings, err := o.read(ctx, config)
	if err != nil {
		return nil, err
	}
	d, err := o.registry.Open(string(config.Spec.Type), settings)
	if err == nil {
		return d, nil
	}
	refused := &NotReadyError{Provider: config.Name, Reason: v1alpha1.ReasonInvalidConfiguration, Message: err.Error()}
	if provider.ReasonOf(err) == provider.ReasonTypeUnknown && config.Spec.Type == v1alpha1.ProviderTypeSimulated {
		refused.Reason, refused.Message = v1alpha1.ReasonSimulatedNotAllowed, "the operator was started without --allow-simulated"
	}
	return nil, refused
}

func (o *Opener) read(ctx context.Context, config *v1alpha1.ProviderConfig) (Settings, error) {
	s := Settings{Spec: config.Spec}
	if config.Spec.Type != v1alpha1.ProviderTypeSSH {
		return s, nil
	}
	var err error
	if s.PrivateKey, err = o.readKey(ctx, config, v1alpha1.ReasonSecretMissing, "Secret", config.Spec.SSH.PrivateKeySecretRef.Name, config.Spec.SSH.PrivateKeySecretRef.Key); err != nil {
		return s, err
	}
	if hosts := config.Spec.SSH.HostKeys; hosts.Policy == v1alpha1.HostKeyPolicyKnownHosts {
		s.KnownHosts, err = o.readKey(ctx, config, v1alpha1.ReasonKnownHostsMissing, "ConfigMap", hosts.KnownHostsRef.Name, hosts.KnownHostsRef.Key)
	}
	return s, err
}

// readKey reads one key of a Secret or ConfigMap.
func (o *Opener) readKey(ctx context.Context, config *v1alpha1.ProviderConfig, missing v1alpha1.Reason, kind, name, key string) ([]byte, error) {
	refuse := func(format string, args ...any) ([]byte, error) {
		return nil, &NotReadyError{Provider: config.Name, Reason: missing, Message: fmt.Sprintf(format, args...)}
	}
	data, err := o.readObject(ctx, kind, client.ObjectKey{Namespace: config.Namespace, Name: name}, key)
	switch {
	case apierrors.IsNotFound(err):
		return refuse("there is no %s %s in namespace %s", kind, name, config.Namespace)
	case apierrors.IsForbidden(err):
		return refuse("the operator may not read %s %s in namespace %s: bind it the role for pools there", kind, name, config.Namespace)
	case errors.Is(err, errNoKey):
		return refuse("%s %s has no key %s", kind, name, key)
	case err != nil:
		return nil, fmt.Errorf("get %s %s/%s: %w", kind, config.Namespace, name, err)
	}
	return data, nil
}

var errNoKey = errors.New("no such key")

// +kubebuilder:rbac:groups="",resources=secrets;configmaps,verbs=get,roleName=bmdb-operator-pool

func (o *Opener) readObject(ctx context.Context, kind string, name client.ObjectKey, key string) ([]byte, error) {
	if kind == "ConfigMap" {
		var object corev1.ConfigMap
		if err := o.live.Get(ctx, name, &object); err != nil {
			return nil, err
		}
		if text, ok := object.Data[key]; ok {
			return []byte(text), nil
		}
		if data, ok := object.BinaryData[key]; ok {
			return data, nil
		}
		return nil, errNoKey
	}
	var object corev1.Secret
	if err := o.live.Get(ctx, name, &object); err != nil {
		return nil, err
	}
	if data, ok := object.Data[key]; ok {
		return data, nil
	}
	return nil, errNoKey
}
