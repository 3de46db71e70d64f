// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package provider is the contract between the operator and the drivers that
// reach machines: what a driver is told, what it may ask for, and how it says
// that something went wrong.
//
// A driver performs the second of the three phases of work: the side effects.
// It runs while the machine's lock is held and never inside a transaction. It
// knows neither Kubernetes nor the database; both are behind [Steps], which it
// asks before every side effect whether the work is still its own.
//
// What every driver promises, and package providertest checks:
//
//   - It is idempotent. Whoever takes a machine over after a crash calls the
//     same method again, and finds what was done instead of doing it twice.
//   - It calls [Steps.Step] before each side effect and does nothing more once
//     that returned an error, which it returns wrapped.
//   - It ends promptly when its context does, with an error that wraps the
//     context's. No peer that stays silent keeps it: every wait has an end.
//   - It leaves no goroutine and no connection behind.
//   - Every other failure is an [*Error] with one of the reasons of this
//     package and a message on which a person can act, and which holds nothing
//     secret.
//   - It may be used for different machines at the same time. For one machine
//     it is called once at a time: the lock sees to that.
//   - When in doubt it does nothing to the machine and says why.
package provider
