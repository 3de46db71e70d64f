// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// ProviderType is the kind of a provider, and so the driver that works with its machines.
// +kubebuilder:validation:Enum=SSH;Simulated
type ProviderType string

// The types of providers.
const (
	// ProviderTypeSSH is for machines that are up and answer SSH.
	ProviderTypeSSH ProviderType = "SSH"
	// ProviderTypeSimulated is for machines that do not exist, for trials and tests. The operator refuses it unless it was
	// started with --allow-simulated.
	ProviderTypeSimulated ProviderType = "Simulated"
)

// ProviderConfigSpec says how the machines of a provider are reached, and how much may be done to them at once.
// +kubebuilder:validation:XValidation:rule="(self.type == 'SSH') == has(self.ssh)",message="ssh must be set with type SSH, and only with it",fieldPath=".ssh"
// +kubebuilder:validation:XValidation:rule="(self.type == 'Simulated') == has(self.simulated)",message="simulated must be set with type Simulated, and only with it; {} is enough",fieldPath=".simulated"
type ProviderConfigSpec struct {
	// type of the provider. Exactly the member that it names is set. It cannot be changed.
	// +required
	// +unionDiscriminator
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="type cannot be changed: create another ProviderConfig, and Machines that name it"
	Type ProviderType `json:"type,omitempty"`

	// ssh is set with type SSH.
	// +optional
	// +unionMember
	SSH SSHProvider `json:"ssh,omitempty,omitzero"`

	// simulated is set with type Simulated.
	// +optional
	// +unionMember
	Simulated *SimulatedProvider `json:"simulated,omitempty"`

	// limits bound what is recorded for the provider and done to its machines at once, exactly, over all pods and
	// clusters. Of the objects of two clusters the smaller limit counts.
	// +optional
	Limits ProviderLimits `json:"limits,omitempty,omitzero"`
}

// SSHProvider says how machines are reached by SSH.
type SSHProvider struct {
	// user to log in as. One other than root needs sudo without a password.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern="^[A-Za-z_][-A-Za-z0-9_.]*$"
	User string `json:"user,omitempty"`

	// privateKeySecretRef names the private key to log in with, in a format that OpenSSH reads and without a passphrase.
	// It is read at each start of work, so that a change needs no restart.
	// +required
	PrivateKeySecretRef SecretKeyReference `json:"privateKeySecretRef,omitzero"`

	// hostKeys says which host keys are trusted.
	// +required
	HostKeys SSHHostKeys `json:"hostKeys,omitzero"`
}

// HostKeyPolicy says which host key of a machine is trusted.
// +kubebuilder:validation:Enum=KnownHosts;TrustOnFirstUse
type HostKeyPolicy string

// The policies for host keys. Under both the key that was seen is pinned to the machine in the database.
const (
	// HostKeyPolicyKnownHosts trusts what a list says, and nothing else. Where the list differs from the pinned key, the
	// list wins and its key is pinned.
	HostKeyPolicyKnownHosts HostKeyPolicy = "KnownHosts"
	// HostKeyPolicyTrustOnFirstUse trusts the first key that a machine shows, and then that one only.
	HostKeyPolicyTrustOnFirstUse HostKeyPolicy = "TrustOnFirstUse"
)

// SSHHostKeys says which host keys are trusted.
// +kubebuilder:validation:XValidation:rule="(self.policy == 'KnownHosts') == has(self.knownHostsRef)",message="knownHostsRef must be set with policy KnownHosts, and only with it",fieldPath=".knownHostsRef"
type SSHHostKeys struct {
	// policy is KnownHosts or TrustOnFirstUse. There is no default: whoever configures a provider decides.
	// +required
	Policy HostKeyPolicy `json:"policy,omitempty"`

	// knownHostsRef names the list of known hosts, in the format of OpenSSH's known_hosts, with policy KnownHosts.
	// +optional
	KnownHostsRef KnownHostsReference `json:"knownHostsRef,omitempty,omitzero"`
}

// KnownHostsKind is the kind of object that a list of known hosts is in.
// +kubebuilder:validation:Enum=ConfigMap
type KnownHostsKind string

// KnownHostsKindConfigMap says that the list of known hosts is in a ConfigMap.
const KnownHostsKindConfigMap KnownHostsKind = "ConfigMap"

// KnownHostsReference names a list of known hosts in the namespace of the object that has the reference.
type KnownHostsReference struct {
	// kind of the object that has the list: ConfigMap.
	// +required
	Kind KnownHostsKind `json:"kind,omitempty"`

	// name of the object.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
	Name string `json:"name,omitempty"`

	// key of the object's data.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern="^[-._a-zA-Z0-9]+$"
	Key string `json:"key,omitempty"`
}

// SimulatedProvider says how machines that do not exist behave. What happens to a machine depends on its identity, the
// attempt and the seed alone.
// +kubebuilder:validation:MinProperties=0
// +kubebuilder:validation:XValidation:rule="(has(self.failurePercent) ? self.failurePercent : 0) + (has(self.hangPercent) ? self.hangPercent : 0) <= 100",message="failurePercent and hangPercent together must not be above 100"
type SimulatedProvider struct {
	// latencyMilliseconds is how long work takes. Without it work takes no time.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=3600000
	LatencyMilliseconds *int32 `json:"latencyMilliseconds,omitempty"`

	// failurePercent is how many of a hundred attempts fail. Without it none does.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	FailurePercent *int32 `json:"failurePercent,omitempty"`

	// hangPercent is how many of a hundred attempts do not return before their time is over. Without it none does.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	HangPercent *int32 `json:"hangPercent,omitempty"`

	// seed makes a different choice of the attempts that fail and hang. Without it the seed is 0.
	// +optional
	Seed *int64 `json:"seed,omitempty"`
}

// ProviderLimits bound what is recorded for a provider and done to its machines at once.
// +kubebuilder:validation:MinProperties=1
type ProviderLimits struct {
	// maxMachines is the greatest number of machines that are recorded for the provider. The next is Stalled with AtLimit.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	MaxMachines *int32 `json:"maxMachines,omitempty"`

	// parallelism is the greatest number of machines that are worked on at once. 0 starts nothing. A lower one lets the
	// work that runs end.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=10000
	Parallelism *int32 `json:"parallelism,omitempty"`
}

// ProviderConfigStatus is what the database and the cluster know about a provider.
//
// An empty status is refused: to those who compute an object's health it would look as though all was done. To wipe it,
// remove it; it is then that of a new object.
// +kubebuilder:validation:MinProperties=1
type ProviderConfigStatus struct {
	// conditions are Ready and Managed, and Reconciling or Stalled while they are True. Ready means: work may be done to
	// the provider's machines.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`

	// observedGeneration is the generation of the spec that this status takes into account; -1 before the first.
	// +optional
	// +kubebuilder:validation:Minimum=-1
	ObservedGeneration *int64 `json:"observedGeneration,omitempty"`

	// databaseID is the UUID of the database that this status was read from.
	// +optional
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Format=uuid
	DatabaseID string `json:"databaseID,omitempty"`

	// revision is that of the provider's row that this status shows. It only grows; a lower one in the database means that
	// the database was rewound.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Revision int64 `json:"revision,omitempty"`

	// machines are counts of the provider's machines.
	// +optional
	Machines ProviderMachines `json:"machines,omitempty,omitzero"`
}

// ProviderMachines are counts of a provider's machines.
// +kubebuilder:validation:MinProperties=1
type ProviderMachines struct {
	// managed is the number of machines that are recorded for the provider.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Managed *int32 `json:"managed,omitempty"`
}

// ProviderConfig says where machines of the pool come from and how they are reached. Who may create one can use, and so
// learn, the Secrets of its namespace.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=bmdb,shortName=bmp
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=".spec.type"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].status"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].reason"
// +kubebuilder:printcolumn:name="Machines",type=integer,JSONPath=".status.machines.managed"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name of a ProviderConfig becomes a label value and must have at most 63 characters"
type ProviderConfig struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object metadata. The name has at most 63 characters; it is the provider's name in the pool.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// spec says how the provider's machines are reached.
	// +required
	Spec ProviderConfigSpec `json:"spec,omitzero"`

	// status is what the database and the cluster know about the provider. It may be wiped at any time and comes back by
	// itself.
	// +optional
	// +default={"observedGeneration": -1}
	Status ProviderConfigStatus `json:"status,omitempty,omitzero"`
}

// ProviderConfigList is a list of ProviderConfigs.
// +kubebuilder:object:root=true
type ProviderConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []ProviderConfig `json:"items"`
}
