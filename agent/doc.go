// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

// Package agent is what runs on a machine, and the files and lines by which
// others know it.
//
// The agent proves that a machine lives and which one it is. It keeps an
// ed25519 key, made once and never replaced, whose public half the database
// records; prints that and facts about the machine as one line of JSON
// ([Report]); and stays up until SIGTERM. It does nothing else to the machine.
//
// All it keeps is in its state directory (root, 0700):
//
//	owner.json    which database and which machine this is ([Owner]); written
//	              by whoever starts the agent, before anything else
//	agent         the binary
//	agent.key     its private key, PKCS #8, 0600
//	agent.lock    locked (flock) by the agent that runs
//	running.json  what the agent that runs printed, and how to know that it lives
//	agent.log     its output
//
// At most one agent runs in a state directory. A second start finds the first,
// prints its report with alreadyRunning set, and ends successfully: so starting
// is idempotent. No time stamp takes part in that: the lock dies with its
// process, and running.json counts only while the process that it names lives.
package agent

// DefaultStateDir is where the agent keeps its state unless told otherwise.
const DefaultStateDir = "/var/lib/bmdb"

// The files in the state directory.
const (
	OwnerFile   = "owner.json"
	BinaryFile  = "agent"
	KeyFile     = "agent.key"
	LockFile    = "agent.lock"
	RunningFile = "running.json"
	LogFile     = "agent.log"
)
