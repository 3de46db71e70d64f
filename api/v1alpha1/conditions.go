// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// ConditionType is the type of a condition of the kinds of this package.
type ConditionType string

// The types of conditions. All but Reconciling and Stalled are always present once a status was written.
const (
	// ConditionReady says that all is as it should be. Machine: recorded in the database, and nothing for a person to
	// solve. WorkClaim: complete, or continuous and going on. ProviderConfig: work may be done to its machines. Where it is
	// False, its reason and message say what is waited for, or what a person has to do.
	ConditionReady ConditionType = "Ready"
	// ConditionManaged says that this object's spec is the one that counts. It is False with ManagedElsewhere in an object
	// that only shows the status, because another cluster's object manages.
	ConditionManaged ConditionType = "Managed"
	// ConditionHeld says that a hold keeps everybody from starting work on the machine.
	ConditionHeld ConditionType = "Held"
	// ConditionFinished says that a claim has come to its end, complete or failed.
	ConditionFinished ConditionType = "Finished"
	// ConditionComplete says that a claim has done what it was to do.
	ConditionComplete ConditionType = "Complete"
	// ConditionFailed says that a claim has come to its end without having done what it was to do.
	ConditionFailed ConditionType = "Failed"
	// ConditionReconciling is True, and otherwise absent, while work goes on or waits for what passes by itself. It is
	// never True together with Stalled.
	ConditionReconciling ConditionType = "Reconciling"
	// ConditionStalled is True, and otherwise absent, while only a person can make it go on. It is never True together
	// with Reconciling.
	ConditionStalled ConditionType = "Stalled"
)

// Reason is the reason of a condition of the kinds of this package.
type Reason string

// Reasons of what is as it should be, or on its way there.
const (
	// ReasonRecorded (Machine, ProviderConfig): the database knows the object, and there is nothing for a person to solve.
	ReasonRecorded Reason = "Recorded"
	// ReasonNotRecorded: the database does not know the object yet.
	ReasonNotRecorded Reason = "NotRecorded"
	// ReasonManager (Managed=True): this object's spec is the one that counts.
	ReasonManager Reason = "Manager"
	// ReasonManagedElsewhere (Managed=False): the object of the cluster in the message manages; this one shows the same
	// status, and is Ready.
	ReasonManagedElsewhere Reason = "ManagedElsewhere"
	// ReasonNotHeld (Held=False): no hold is on the machine.
	ReasonNotHeld Reason = "NotHeld"
	// ReasonHeld (Held=True of a Machine; Ready=False of a WorkClaim): the hold in the message keeps everybody from
	// starting work on the machine, or on all that are left for the claim.
	ReasonHeld Reason = "Held"
	// ReasonPending (WorkClaim): recorded, and nothing was started for it yet.
	ReasonPending Reason = "Pending"
	// ReasonWorking (WorkClaim): machines are being worked on, or are about to be.
	ReasonWorking Reason = "Working"
	// ReasonIdle (WorkClaim of mode Continuous): no selected machine needs the process at the moment.
	ReasonIdle Reason = "Idle"
	// ReasonComplete (WorkClaim): done what was to be done.
	ReasonComplete Reason = "Complete"
	// ReasonNotFinished (Finished=False, Complete=False): the claim has not come to its end.
	ReasonNotFinished Reason = "NotFinished"
	// ReasonNotFailed (Failed=False): the claim has not failed.
	ReasonNotFailed Reason = "NotFailed"
	// ReasonSuspended (WorkClaim): spec.suspend is true in an object of the key, and nothing new is started.
	ReasonSuspended Reason = "Suspended"
)

// Reasons why a claim waits for what passes by itself: Ready=False and Reconciling=True.
const (
	// ReasonNoMachineSelected: no machine of the pool is selected. One that is created later is.
	ReasonNoMachineSelected Reason = "NoMachineSelected"
	// ReasonNotNeeded: none of the selected machines needs the process. The message names the facts that say so.
	ReasonNotNeeded Reason = "NotNeeded"
	// ReasonBackedOff: the process leaves the machines alone after a failure, until the time in the message.
	ReasonBackedOff Reason = "BackedOff"
	// ReasonAtLimit: a limit is used up; the message says which. Of a Machine, with Stalled: its provider may have no
	// further machine.
	ReasonAtLimit Reason = "AtLimit"
	// ReasonLockedBy: other work holds the machines; the message says whose.
	ReasonLockedBy Reason = "LockedBy"
)

// Reasons why a claim needs a person: Ready=False and Stalled=True.
const (
	// ReasonNoSuchMachine: a named machine is not in the pool. Create it, or delete the claim.
	ReasonNoSuchMachine Reason = "NoSuchMachine"
	// ReasonProviderNotReady: the machines' ProviderConfig is missing here or is not Ready. Its own condition says more.
	ReasonProviderNotReady Reason = "ProviderNotReady"
	// ReasonQuarantined: only machines that used up their attempts are left. Raise maxAttempts once the cause is gone.
	ReasonQuarantined Reason = "Quarantined"
	// ReasonProcessNotAvailable: the process is unknown, or this version of the operator does not carry it out.
	ReasonProcessNotAvailable Reason = "ProcessNotAvailable"
	// ReasonProcessNotConvergent: mode Continuous would repeat the process for ever, because its success leaves the
	// machine in need of it. Use mode Once.
	ReasonProcessNotConvergent Reason = "ProcessNotConvergent"
	// ReasonKeyConflict: the key stands for another spec already. Nothing was changed. Use another key or name.
	ReasonKeyConflict Reason = "KeyConflict"
)

// Reasons why a claim has failed: Failed=True, Finished=True and Stalled=True. That is final; what is left can be done by
// a claim with another key.
const (
	// ReasonDeadlineExceeded: activeDeadlineSeconds are over.
	ReasonDeadlineExceeded Reason = "DeadlineExceeded"
	// ReasonTooManyFailedMachines: more machines than maxFailedMachines are quarantined.
	ReasonTooManyFailedMachines Reason = "TooManyFailedMachines"
	// ReasonCompletionsUnreachable: too few of the named machines are left to reach completions.
	ReasonCompletionsUnreachable Reason = "CompletionsUnreachable"
)

// Reasons why an object contradicts another: Ready=False and Stalled=True. Nothing was changed, the message names the
// other party, and the condition clears when the contradiction is gone.
const (
	// ReasonIdentityConflict: the same provider and providerID belong to another object of the cluster, to another pool, or
	// to a machine of another name elsewhere.
	ReasonIdentityConflict Reason = "IdentityConflict"
	// ReasonNameConflict: another machine has the name in this pool.
	ReasonNameConflict Reason = "NameConflict"
	// ReasonAddressConflict: another machine of the provider has the address.
	ReasonAddressConflict Reason = "AddressConflict"
)

// Reasons why an object does not fit the database: Ready=False and Stalled=True. The object's status keeps the old
// databaseID and revision, which are the evidence, and no claim among such objects starts anything, until a person has
// acknowledged the database.
const (
	// ReasonDatabaseChanged: status.databaseID is that of another database.
	ReasonDatabaseChanged Reason = "DatabaseChanged"
	// ReasonDatabaseRewound: status.revision is above that of the database, which was restored from an older state.
	ReasonDatabaseRewound Reason = "DatabaseRewound"
)

// Reasons why a ProviderConfig cannot be used: Ready=False and Stalled=True.
const (
	// ReasonSecretMissing: the Secret, or its key, is not there or may not be read.
	ReasonSecretMissing Reason = "SecretMissing"
	// ReasonKnownHostsMissing: the list of known hosts, or its key, is not there or may not be read.
	ReasonKnownHostsMissing Reason = "KnownHostsMissing"
	// ReasonSimulatedNotAllowed: the operator was started without --allow-simulated.
	ReasonSimulatedNotAllowed Reason = "SimulatedNotAllowed"
	// ReasonInvalidConfiguration: something in the spec, or in what it names, cannot be used; the message says what and
	// why. It stands for the drivers' ConfigInvalid and TypeUnknown too. Of a WorkClaim: its selector cannot be used.
	ReasonInvalidConfiguration Reason = "InvalidConfiguration"
)

// Reasons why a driver refused to work on a machine, or could not, spelled like the reasons of the drivers' errors. Of a
// Machine, Ready=False and Stalled=True, where only a person can solve it; nothing was done to the machine then. The others
// pass by themselves, by another attempt, and are seen in causes only.
const (
	// ReasonAddressMissing (person): the provider's driver does not know the machine's address, and spec.address has none.
	ReasonAddressMissing Reason = "AddressMissing"
	// ReasonAddressInvalid (person): the driver cannot use the address.
	ReasonAddressInvalid Reason = "AddressInvalid"
	// ReasonUnreachable: the machine does not answer at its address.
	ReasonUnreachable Reason = "Unreachable"
	// ReasonTimedOut: the work, or a step of it, did not end in its time.
	ReasonTimedOut Reason = "TimedOut"
	// ReasonHostKeyMismatch (person): the machine shows another host key than the trusted one. If that is right,
	// "bmdb-operator accept MACHINE host-key" says so.
	ReasonHostKeyMismatch Reason = "HostKeyMismatch"
	// ReasonHostKeyUnknown (person): the list of known hosts has no key for the machine.
	ReasonHostKeyUnknown Reason = "HostKeyUnknown"
	// ReasonHostKeyRevoked (person): the list of known hosts says that the key that the machine shows is revoked.
	ReasonHostKeyRevoked Reason = "HostKeyRevoked"
	// ReasonAuthenticationFailed (person): the machine refuses the user or the private key.
	ReasonAuthenticationFailed Reason = "AuthenticationFailed"
	// ReasonNeedsSudo (person): the user is not root and may not become root without a password.
	ReasonNeedsSudo Reason = "NeedsSudo"
	// ReasonOwnedByAnotherDatabase (person): the owner file on the host names another database. If the host is ours,
	// "bmdb-operator accept MACHINE owner" says so.
	ReasonOwnedByAnotherDatabase Reason = "OwnedByAnotherDatabase"
	// ReasonOwnedByAnotherMachine (person): the owner file on the host names another machine of this database. If the host
	// is this machine, "bmdb-operator accept MACHINE owner" says so.
	ReasonOwnedByAnotherMachine Reason = "OwnedByAnotherMachine"
	// ReasonOwnerUnclear (person): the owner file on the host cannot be understood.
	ReasonOwnerUnclear Reason = "OwnerUnclear"
	// ReasonArchitectureUnsupported (person): there is no agent for the machine's architecture.
	ReasonArchitectureUnsupported Reason = "ArchitectureUnsupported"
	// ReasonUploadFailed: the agent could not be brought to the machine.
	ReasonUploadFailed Reason = "UploadFailed"
	// ReasonCommandFailed: a command failed on the machine.
	ReasonCommandFailed Reason = "CommandFailed"
	// ReasonAgentFailed: the agent did not start, or what it printed is not what an agent prints.
	ReasonAgentFailed Reason = "AgentFailed"
	// ReasonSimulatedFailure: a simulated machine failed, as it was told to.
	ReasonSimulatedFailure Reason = "SimulatedFailure"
)
