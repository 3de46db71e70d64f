// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// DeletionPolicy says what the deletion of a Machine object means for the machine.
// +kubebuilder:validation:Enum=Retain
type DeletionPolicy string

// DeletionPolicyRetain ends the view and nothing else: the machine's row, its history and running work stay, and an
// object with the same identity finds all of it again.
const DeletionPolicyRetain DeletionPolicy = "Retain"

// MachineSpec is what a person says about a machine: which one it is and how it is reached.
type MachineSpec struct {
	// providerRef names the ProviderConfig, in the namespace of the Machine, through which the machine is reached. It is
	// part of the machine's identity and cannot be changed.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="providerRef is part of the machine's identity and cannot be changed: create another Machine for a machine of another provider, or restore the old value"
	ProviderRef ProviderConfigReference `json:"providerRef,omitzero"`

	// providerID is the machine's identity at its provider, for example its place in a rack, an inventory number or the
	// provider's own ID. Together with providerRef it identifies the machine for ever; it cannot be changed. Printable
	// ASCII without spaces.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern="^[!-~]+$"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="providerID is the machine's identity and cannot be changed: create another Machine for another machine, or restore the old value"
	ProviderID string `json:"providerID,omitempty"`

	// address is where the machine answers: host, host:port or [IPv6]:port, where host is a DNS name or an IPv4 address.
	// Names are in lower case and IPv6 addresses in canonical form, so that an address has one spelling: two machines of
	// a provider must not have the same. It may change. It may be left out where the provider's driver knows it.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=259
	// +kubebuilder:validation:XValidation:rule="self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*(:[0-9]+)?|[[][0-9a-f:.]+[]]:[0-9]+)$')",message="address must be host, host:port or [IPv6]:port, in lower case"
	// +kubebuilder:validation:XValidation:rule="self.startsWith('[') || !self.matches('^[0-9.]+(:|$)') || isIP(self.split(':')[0])",message="address looks like an IPv4 address but is none"
	// +kubebuilder:validation:XValidation:rule="!self.startsWith('[') || (isIP(self.substring(1, self.indexOf(']'))) && ip(self.substring(1, self.indexOf(']'))).family() == 6 && ip.isCanonical(self.substring(1, self.indexOf(']'))))",message="address must have an IPv6 address in its canonical form between the brackets"
	// +kubebuilder:validation:XValidation:rule="!self.matches(':[0-9]+$') || self.matches(':([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$')",message="address must have a port between 1 and 65535, without leading zeros"
	Address string `json:"address,omitempty"`

	// deletionPolicy says what the deletion of this object means for the machine. Retain, the default: only this view of
	// it goes; the machine's row, its history and running work stay.
	// +optional
	// +default="Retain"
	DeletionPolicy DeletionPolicy `json:"deletionPolicy,omitempty"`
}

// MachineStatus is a view of the machine's row in the database.
//
// An empty status is refused: to those who compute an object's health it would look as though all was done. To wipe it,
// remove it; it is then that of a new object.
// +kubebuilder:validation:MinProperties=1
type MachineStatus struct {
	// conditions are Ready, Managed and Held, and Reconciling or Stalled while they are True. Ready means: recorded in
	// the database, and nothing for a person to solve; it waits for no claim.
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

	// machineID is the UUID of the machine's row. It is the same for every view of the machine, in every cluster, and for
	// an object that was deleted and created again.
	// +optional
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Format=uuid
	MachineID string `json:"machineID,omitempty"`

	// databaseID is the UUID of the database that this status was read from.
	// +optional
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Format=uuid
	DatabaseID string `json:"databaseID,omitempty"`

	// revision is that of the machine's row that this status shows. It only grows; a lower one in the database means that
	// the database was rewound.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Revision int64 `json:"revision,omitempty"`

	// tags are the facts that the database knows about the machine.
	// +optional
	Tags MachineTags `json:"tags,omitempty,omitzero"`

	// work is what is being done to the machine now: at most one work for each slot, at most 32, the oldest first.
	// +optional
	// +listType=map
	// +listMapKey=slot
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Work []MachineWork `json:"work,omitempty"`

	// backoffs are the processes that leave the machine alone for a while after a failure, at most the 32 that last
	// longest.
	// +optional
	// +listType=map
	// +listMapKey=process
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=32
	Backoffs []MachineBackoff `json:"backoffs,omitempty"`
}

// MachineTags are the facts about a machine, one member for each built-in tag that is set, and a list of those that
// users defined.
// +kubebuilder:validation:MinProperties=1
type MachineTags struct {
	// provided says that the machine was provided, and by whom.
	// +optional
	Provided ProvidedTag `json:"provided,omitempty,omitzero"`

	// agentStarted says that the agent was started on the machine.
	// +optional
	AgentStarted AgentStartedTag `json:"agentStarted,omitempty,omitzero"`

	// custom are the tags that users defined and that are set, at most 64, in the order of their names.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=64
	Custom []CustomTag `json:"custom,omitempty"`
}

// ProvidedTag says that a machine was provided, and by whom.
type ProvidedTag struct {
	// provider is the name of the provider as the database knows it.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Provider string `json:"provider,omitempty"`

	// providerID is the machine's identity at the provider.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	ProviderID string `json:"providerID,omitempty"`
}

// AgentStartedTag says that the agent was started on a machine, and with which key.
type AgentStartedTag struct {
	// startTime is when the agent was started, by the database's clock.
	// +required
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// publicKey is the agent's ed25519 public key, in base64.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=64
	PublicKey string `json:"publicKey,omitempty"`
}

// CustomTag is a tag that users defined and that is set on a machine.
type CustomTag struct {
	// name of the tag.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name,omitempty"`

	// setTime is when the tag was last set, by the database's clock.
	// +optional
	SetTime *metav1.Time `json:"setTime,omitempty"`
}

// MachineWork is a process that is being performed on a machine.
type MachineWork struct {
	// slot that the work occupies on the machine. Processes that exclude each other share one.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Slot string `json:"slot,omitempty"`

	// process that is being performed.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Process string `json:"process,omitempty"`

	// workID is the UUID of the work. A commit with another one is refused.
	// +required
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Format=uuid
	WorkID string `json:"workID,omitempty"`

	// claim is the key of the claim that ordered the work; absent when a program that uses the library did.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Claim string `json:"claim,omitempty"`

	// holder is who performs the work, usually the name of an operator pod.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Holder string `json:"holder,omitempty"`

	// cluster is the ID of the cluster that the holder runs in; absent when it runs in none.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Cluster string `json:"cluster,omitempty"`

	// startTime is when the work started, by the database's clock.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`
}

// MachineBackoff is a period in which a process leaves a machine alone after a failure.
type MachineBackoff struct {
	// process that leaves the machine alone.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Process string `json:"process,omitempty"`

	// until is when the period ends, by the database's clock.
	// +required
	Until *metav1.Time `json:"until,omitempty"`

	// attempts is how often the process has failed on the machine since it last succeeded.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Attempts int32 `json:"attempts,omitempty"`

	// cause of the last failure, shortened to 1024 characters.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Cause string `json:"cause,omitempty"`
}

// Machine is one physical machine of the pool that its namespace is. Creating it records the machine in the database and
// does nothing to it: what is done to machines is ordered by a WorkClaim.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=bmdb,shortName=bmm
// +kubebuilder:printcolumn:name="Provider",type=string,JSONPath=".spec.providerRef.name"
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].status"
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].reason"
// +kubebuilder:printcolumn:name="Work",type=string,JSONPath=".status.work[*].process",description="Process that is being performed on the machine now, the oldest of several"
// +kubebuilder:printcolumn:name="Held",type=string,JSONPath=".status.conditions[?(@.type=='Held')].status"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
// +kubebuilder:printcolumn:name="Address",type=string,JSONPath=".spec.address",priority=1
// +kubebuilder:printcolumn:name="Machine-ID",type=string,JSONPath=".status.machineID",priority=1
// +kubebuilder:printcolumn:name="Agent",type=date,JSONPath=".status.tags.agentStarted.startTime",priority=1,description="How long ago the agent was started"
type Machine struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object metadata. The name is the machine's name and unique in the pool. Labels are mirrored
	// to the database, where the selectors of claims see them.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// spec is what a person says about the machine.
	// +required
	Spec MachineSpec `json:"spec,omitzero"`

	// status is a view of the machine's row in the database. It may be wiped at any time and comes back by itself.
	// +optional
	// +default={"observedGeneration": -1}
	Status MachineStatus `json:"status,omitempty,omitzero"`
}

// MachineList is a list of Machines.
// +kubebuilder:object:root=true
type MachineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []Machine `json:"items"`
}
