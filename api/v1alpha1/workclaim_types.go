// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Names of the processes that are built in. Any other name is that of a process that a user registered.
const (
	// ProcessAgentStart starts the agent on a machine and records its key.
	ProcessAgentStart = "AgentStart"
	// ProcessAgentRecovery gets hold again of a machine whose agent no longer reports.
	ProcessAgentRecovery = "AgentRecovery"
	// ProcessOSInstall installs an operating system on a machine.
	ProcessOSInstall = "OSInstall"
)

// WorkMode says when a claim is finished.
// +kubebuilder:validation:Enum=Once;Drain;Continuous
type WorkMode string

// The modes of a WorkClaim.
const (
	// WorkModeOnce is complete when as many machines as spec.completions says are done, each at most once.
	WorkModeOnce WorkMode = "Once"
	// WorkModeDrain is complete when no selected machine needs the process any more; each is done at most once.
	WorkModeDrain WorkMode = "Drain"
	// WorkModeContinuous is never complete; a machine is done again whenever it needs the process again.
	WorkModeContinuous WorkMode = "Continuous"
)

// Limits of what the status of a WorkClaim lists.
const (
	// MaxListedMachines is the greatest number of machines in each list of the status of a WorkClaim.
	MaxListedMachines = 20
	// MaxCauseLength is the greatest number of characters of a cause in a status.
	MaxCauseLength = 1024
)

// ParameterValue is the value of a parameter: text without NUL, which the database cannot keep.
// +kubebuilder:validation:MinLength=0
// +kubebuilder:validation:MaxLength=1024
// +kubebuilder:validation:Pattern="^[^\\x00]*$"
type ParameterValue string

// WorkClaimSpec orders a process for machines of the pool.
// +kubebuilder:validation:XValidation:rule="has(self.parameters) == has(oldSelf.parameters)",message="parameters are part of what the key stands for and cannot be added or removed: create another WorkClaim, with another key",fieldPath=".parameters"
// +kubebuilder:validation:XValidation:rule="has(self.completions) == has(oldSelf.completions)",message="completions cannot be added or removed: create another WorkClaim, with another key",fieldPath=".completions"
// +kubebuilder:validation:XValidation:rule="has(self.key) == has(oldSelf.key)",message="key is the claim's identity and cannot be added or removed: create another WorkClaim to do it again",fieldPath=".key"
// +kubebuilder:validation:XValidation:rule="!has(self.completions) || self.mode == 'Once'",message="completions may be set only with mode Once: leave them out, Drain ends when no machine needs the process any more and Continuous never",fieldPath=".completions"
// +kubebuilder:validation:XValidation:rule="!has(self.completions) || !has(self.machines.names) || self.completions <= size(self.machines.names)",message="completions must not be above the number of names, it could never be reached",fieldPath=".completions"
type WorkClaimSpec struct {
	// process that is to be performed: a built-in one (CamelCase) or the name of one that a user registered (kebab-case).
	// It cannot be changed.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern="^([A-Z][A-Za-z0-9]*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)$"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="process is part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	Process string `json:"process,omitempty"`

	// parameters for the process, at most 32 of at most 1024 characters. They are kept in the history: no secrets. They
	// cannot be changed.
	// +optional
	// +mapType=atomic
	// +kubebuilder:validation:MinProperties=1
	// +kubebuilder:validation:MaxProperties=32
	// +kubebuilder:validation:XValidation:rule="self.all(k, size(k) >= 1 && size(k) <= 63 && !k.contains('\\x00'))",message="keys of parameters must have between 1 and 63 characters, none of them NUL"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="parameters are part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	Parameters map[string]ParameterValue `json:"parameters,omitempty"`

	// machines selects those to work on. It cannot be changed.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="machines are part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	Machines MachineSelection `json:"machines,omitzero"`

	// mode says when the claim is finished. Once: when as many machines as completions says are done. Drain: when no
	// selected machine needs the process any more. Continuous: never. It cannot be changed.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="mode is part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	Mode WorkMode `json:"mode,omitempty"`

	// completions is the number of machines that must be done, in mode Once only. It defaults to the number of names, and
	// to 1 without names. It cannot be changed.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="completions are part of what the key stands for and cannot be changed: create another WorkClaim, with another key"
	Completions int32 `json:"completions,omitempty"`

	// key is the identity of the claim in its pool, for ever: a key is carried out once, in whatever cluster and however
	// often its manifest is applied again, and every other object with it reports the outcome. It defaults to the name of
	// the object. It cannot be changed.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern="^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="key is the claim's identity and cannot be changed: create another WorkClaim to do it again"
	Key string `json:"key,omitempty"`

	// parallelism is the greatest number of machines that are worked on at once, over all pods and clusters. A lower one
	// lets the work that runs end.
	// +optional
	// +default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=10000
	Parallelism int32 `json:"parallelism,omitempty"`

	// timeoutSeconds is how long the work on one machine may take.
	// +optional
	// +default=600
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=604800
	TimeoutSeconds int32 `json:"timeoutSeconds,omitempty"`

	// activeDeadlineSeconds is how long the claim may take, from status.startTime; then it has failed. Without it there is
	// no such time.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=315360000
	ActiveDeadlineSeconds int64 `json:"activeDeadlineSeconds,omitempty"`

	// maxAttempts is how often a machine is tried, in mode Continuous since it last succeeded. After that it is
	// quarantined for this claim. Raising it tries again.
	// +optional
	// +default=5
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	MaxAttempts int32 `json:"maxAttempts,omitempty"`

	// maxFailedMachines is the greatest number of quarantined machines. With more the claim has failed and nothing new is
	// started. Without it any number may fail.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	MaxFailedMachines *int32 `json:"maxFailedMachines,omitempty"`

	// backoff is how long a machine is left alone after a failure.
	// +optional
	// +default={"initialSeconds": 30, "maximumSeconds": 3600}
	Backoff WorkBackoff `json:"backoff,omitempty,omitzero"`

	// suspend stops new starts while it is true in any cluster's object of the key. Work that runs ends.
	// +optional
	Suspend *bool `json:"suspend,omitempty"`

	// ttlSecondsAfterFinished is when the object is deleted, from the later of its end and its creation. Without it the
	// object stays. Not for objects that are kept in Git, which would create them again: they would report the outcome,
	// and do nothing.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=315360000
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`
}

// WorkBackoff is how long a machine is left alone after a failure: up to initialSeconds after the first, twice as long
// after each further one up to maximumSeconds, at random within that (full jitter).
// +kubebuilder:validation:XValidation:rule="!has(self.initialSeconds) || !has(self.maximumSeconds) || self.initialSeconds <= self.maximumSeconds",message="initialSeconds must not be above maximumSeconds, which is 3600 where it is left out"
// +kubebuilder:validation:MinProperties=1
type WorkBackoff struct {
	// initialSeconds bounds the period after the first failure.
	// +optional
	// +default=30
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=604800
	InitialSeconds int32 `json:"initialSeconds,omitempty"`

	// maximumSeconds bounds the period after any number of failures.
	// +optional
	// +default=3600
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=604800
	MaximumSeconds int32 `json:"maximumSeconds,omitempty"`
}

// WorkClaimStatus is what the database says was done for the claim's key.
//
// An empty status is refused: to those who compute an object's health it would look as though all was done. To wipe it,
// remove it; it is then that of a new object.
// +kubebuilder:validation:MinProperties=1
type WorkClaimStatus struct {
	// conditions are Ready, Managed, Finished, Complete and Failed, and Reconciling or Stalled while they are True.
	// Finished is True for both ends; what the claim waits for is in Ready.
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

	// key is the one in effect: spec.key or the object's name.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Key string `json:"key,omitempty"`

	// databaseID is the UUID of the database that this status was read from.
	// +optional
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Format=uuid
	DatabaseID string `json:"databaseID,omitempty"`

	// revision is that of the claim's row that this status shows. It only grows; a lower one in the database means that
	// the database was rewound.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Revision int64 `json:"revision,omitempty"`

	// progress is the number of machines that are done, and the number that are to be done where there is one: "4/6". For
	// mode Drain the latter is the number of selected machines; mode Continuous has none.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	Progress string `json:"progress,omitempty"`

	// succeeded is the number of machines that are done, with those that were named and did not need the process.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Succeeded *int32 `json:"succeeded,omitempty"`

	// active is the number of machines that are being worked on.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Active *int32 `json:"active,omitempty"`

	// failed is the number of quarantined machines: those that used up their attempts.
	// +optional
	// +kubebuilder:validation:Minimum=0
	Failed *int32 `json:"failed,omitempty"`

	// work is what is being done for the claim now: at most 20, the oldest first.
	// +optional
	// +listType=map
	// +listMapKey=machine
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	Work []ClaimWork `json:"work,omitempty"`

	// failures are the machines that failed, quarantined or not, and are not done: at most 20, the latest first.
	// +optional
	// +listType=map
	// +listMapKey=machine
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	Failures []ClaimFailure `json:"failures,omitempty"`

	// skippedMachines are machines that were named, did not need the process and so count as done; at most 20.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=20
	// +kubebuilder:validation:items:MinLength=1
	// +kubebuilder:validation:items:MaxLength=253
	SkippedMachines []string `json:"skippedMachines,omitempty"`

	// startTime is when the claim was first taken up, by the database's clock.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// completionTime is when the claim was finished, complete or failed, by the database's clock.
	// +optional
	CompletionTime *metav1.Time `json:"completionTime,omitempty"`
}

// ClaimWork is work that is being done for a claim on one machine.
type ClaimWork struct {
	// machine is the machine's name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Machine string `json:"machine,omitempty"`

	// workID is the UUID of the work. A commit with another one is refused.
	// +required
	// +kubebuilder:validation:MinLength=36
	// +kubebuilder:validation:MaxLength=36
	// +kubebuilder:validation:Format=uuid
	WorkID string `json:"workID,omitempty"`

	// attempt counts the attempts on this machine for this claim, from 1.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Attempt int32 `json:"attempt,omitempty"`

	// holder is who performs the work, usually the name of an operator pod.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Holder string `json:"holder,omitempty"`

	// startTime is when the work started, by the database's clock.
	// +optional
	StartTime *metav1.Time `json:"startTime,omitempty"`

	// step that the work is in, as the driver calls it.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Step string `json:"step,omitempty"`

	// percent of the work that is done, in tens.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=100
	// +kubebuilder:validation:MultipleOf=10
	Percent *int32 `json:"percent,omitempty"`
}

// ClaimFailure is a machine on which work for a claim failed.
type ClaimFailure struct {
	// machine is the machine's name.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Machine string `json:"machine,omitempty"`

	// attempts is how often the machine was tried for this claim.
	// +optional
	// +kubebuilder:validation:Minimum=1
	Attempts int32 `json:"attempts,omitempty"`

	// cause of the last failure, shortened to 1024 characters.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	Cause string `json:"cause,omitempty"`
}

// WorkClaim orders a process for machines of the pool that its namespace is. Exactly one worker at a time gets hold of
// each machine, does the work, and commits the result together with the release of the machine. A key is carried out
// once in a pool; to do it again, create another WorkClaim.
//
// While machines are held for it, and up to a minute longer, it has the finalizer bmdb.dev/work and the annotation
// bmdb.dev/work-term, the number of the owner's term that relies on it. Both are the operator's alone.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:categories=bmdb,shortName=wclaim
// +kubebuilder:printcolumn:name="Process",type=string,JSONPath=".spec.process"
// +kubebuilder:printcolumn:name="Done",type=string,JSONPath=".status.progress"
// +kubebuilder:printcolumn:name="Active",type=integer,JSONPath=".status.active"
// +kubebuilder:printcolumn:name="Failed",type=integer,JSONPath=".status.failed"
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].reason"
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=".metadata.creationTimestamp"
// +kubebuilder:printcolumn:name="Mode",type=string,JSONPath=".spec.mode",priority=1
// +kubebuilder:printcolumn:name="Key",type=string,JSONPath=".status.key",priority=1
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=".status.conditions[?(@.type=='Ready')].message",priority=1
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63",message="the name of a WorkClaim becomes a label value and must have at most 63 characters"
type WorkClaim struct {
	metav1.TypeMeta `json:",inline"`

	// metadata is the standard object metadata. The name has at most 63 characters.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitzero"`

	// spec orders a process for machines.
	// +required
	Spec WorkClaimSpec `json:"spec,omitzero"`

	// status is what the database says was done for the claim's key. It may be wiped at any time and comes back by itself.
	// +optional
	// +default={"observedGeneration": -1}
	Status WorkClaimStatus `json:"status,omitempty,omitzero"`
}

// ParameterStrings returns a copy of the parameters as plain strings, nil without any.
func (s *WorkClaimSpec) ParameterStrings() map[string]string {
	if s.Parameters == nil {
		return nil
	}
	out := make(map[string]string, len(s.Parameters))
	for name, value := range s.Parameters {
		out[name] = string(value)
	}
	return out
}

// EffectiveKey returns the key that the claim is known by in its pool: spec.key, or the name of the object.
func (c *WorkClaim) EffectiveKey() string {
	if c.Spec.Key != "" {
		return c.Spec.Key
	}
	return c.Name
}

// EffectiveCompletions returns how many machines must be done in mode Once: spec.completions, or the number of names, or
// 1 where there are none. In the other modes it returns 0: they count to no number.
func (c *WorkClaim) EffectiveCompletions() int32 {
	switch {
	case c.Spec.Mode != WorkModeOnce:
		return 0
	case c.Spec.Completions > 0:
		return c.Spec.Completions
	case len(c.Spec.Machines.Names) > 0:
		return int32(len(c.Spec.Machines.Names)) //nolint:gosec // The API bounds names to 1000.
	default:
		return 1
	}
}

// WorkClaimList is a list of WorkClaims.
// +kubebuilder:object:root=true
type WorkClaimList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitzero"`
	Items           []WorkClaim `json:"items"`
}
