// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/uuid"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
	"github.com/bmdb-dev/bmdb-operator/internal/provider/providertest"
)

func ownerOf(database, machine uuid.UUID) string {
	return fmt.Sprintf(`{"databaseID":%q,"machineID":%q,"pool":"p","name":"n"}`, database, machine)
}

// TestMachinesOfOthersAreLeftAlone: not a byte is written to them.
func TestMachinesOfOthersAreLeftAlone(t *testing.T) {
	other := uuid.New()
	for _, test := range []struct {
		name, reason, message string
		prepare               func(t *testing.T, h *host, m provider.Machine)
	}{
		{"another database", provider.ReasonOwnedByAnotherDatabase, other.String(), func(t *testing.T, h *host, m provider.Machine) {
			h.own(t, ownerOf(other, m.ID))
		}},
		{"another machine", provider.ReasonOwnedByAnotherMachine, other.String(), func(t *testing.T, h *host, m provider.Machine) {
			h.own(t, ownerOf(m.DatabaseID, other))
		}},
		{"another machine of another database", provider.ReasonOwnedByAnotherDatabase, other.String(), func(t *testing.T, h *host, _ provider.Machine) {
			h.own(t, ownerOf(other, other))
		}},
		{"empty file", provider.ReasonOwnerUnclear, "not a JSON object", func(t *testing.T, h *host, _ provider.Machine) { h.own(t, "") }},
		{"half a file", provider.ReasonOwnerUnclear, "not a JSON object", func(t *testing.T, h *host, m provider.Machine) {
			s := ownerOf(m.DatabaseID, m.ID)
			h.own(t, s[:len(s)-1])
		}},
		{"endless file", provider.ReasonOwnerUnclear, "longer than", func(t *testing.T, h *host, m provider.Machine) {
			h.own(t, ownerOf(m.DatabaseID, m.ID)+strings.Repeat(" ", agent.MaxOwnerBytes))
		}},
		{"file is a directory", provider.ReasonOwnerUnclear, "no file", func(t *testing.T, h *host, _ provider.Machine) {
			must(t, os.MkdirAll(filepath.Join(h.stateDir, agent.OwnerFile), 0o700))
		}},
		{"file is a link to nowhere", provider.ReasonOwnerUnclear, "no file", func(t *testing.T, h *host, _ provider.Machine) {
			must(t, os.Mkdir(h.stateDir, 0o700))
			must(t, os.Symlink("nowhere", filepath.Join(h.stateDir, agent.OwnerFile)))
		}},
		{"directory is a link", provider.ReasonOwnerUnclear, "it is a link", func(t *testing.T, h *host, _ provider.Machine) {
			must(t, os.Symlink(t.TempDir(), h.stateDir))
		}},
		{"directory is a file", provider.ReasonOwnerUnclear, "no directory", func(t *testing.T, h *host, _ provider.Machine) {
			must(t, os.WriteFile(h.stateDir, nil, 0o600))
		}},
		{"directory that a group can write", provider.ReasonOwnerUnclear, "others can write", func(t *testing.T, h *host, m provider.Machine) {
			h.own(t, ownerOf(m.DatabaseID, m.ID))
			must(t, os.Chmod(h.stateDir, 0o770))
		}},
		{"directory that all can write", provider.ReasonOwnerUnclear, "others can write", func(t *testing.T, h *host, _ provider.Machine) {
			must(t, os.Mkdir(h.stateDir, 0o700))
			must(t, os.Chmod(h.stateDir, 0o707))
		}},
	} {
		for _, asUser := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, user %v", test.name, asUser), func(t *testing.T) {
				t.Parallel()
				h := newHost(t, behaviour{asUser: asUser})
				m := newMachine(h)
				test.prepare(t, h, m)
				before := h.snapshot(t)
				_, err := newDriver(t, h).StartAgent(t.Context(), m, &providertest.Steps{})
				wantReason(t, err, test.reason, true)
				if err == nil || !strings.Contains(err.Error(), test.message) {
					t.Errorf("error %v, want %q in it", err, test.message)
				}
				if after := h.snapshot(t); after != before {
					t.Errorf("something was written:\n%s\nbefore:\n%s", after, before)
				}
			})
		}
	}
}

// TestDirectoryOfAnotherUser: whoever owns the directory can say whose the
// machine is.
func TestDirectoryOfAnotherUser(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{programs: map[string]string{"stat": `[ "$2" = %u ] && echo 1000 || echo 700`}})
	m := newMachine(h)
	h.own(t, ownerOf(m.DatabaseID, m.ID))
	_, err := newDriver(t, h).StartAgent(t.Context(), m, &providertest.Steps{})
	wantReason(t, err, provider.ReasonOwnerUnclear, true)
}

// TestOwnerFileOfOursIsKept: a machine may have another name since.
func TestOwnerFileOfOursIsKept(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{})
	m := newMachine(h)
	h.own(t, ownerOf(m.DatabaseID, m.ID))
	startAgent(t, newDriver(t, h), m)
	content, err := os.ReadFile(filepath.Join(h.stateDir, agent.OwnerFile))
	must(t, err)
	if string(content) != ownerOf(m.DatabaseID, m.ID) {
		t.Errorf("owner file is %s", content)
	}
}

// TestTwoDatabasesAtTheSameTime: of all that want a new machine at the same
// moment one gets it, and the others see whose it is.
func TestTwoDatabasesAtTheSameTime(t *testing.T) {
	t.Parallel()
	for range 5 {
		h := newHost(t, behaviour{})
		const n = 4
		var wg, ready sync.WaitGroup
		var errs [n]error
		ready.Add(n)
		for i := range n {
			d, m := newDriver(t, h), newMachine(h)
			m.DatabaseID = uuid.New()
			asked := 0
			s := &providertest.Steps{OnStep: func(_ int, c providertest.StepCall) error {
				if c.Name != "CheckOwner" {
					return nil
				}
				if asked++; asked == 2 { // all have seen that there is no owner
					ready.Done()
					ready.Wait()
				}
				return nil
			}}
			wg.Go(func() { _, errs[i] = d.StartAgent(t.Context(), m, s) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
				continue
			}
			wantReason(t, err, provider.ReasonOwnedByAnotherDatabase, true)
		}
		if won != 1 {
			t.Errorf("%d databases have the machine: %v", won, errs)
		}
	}
}

// TestAcceptedHostChangesHands: a person who looked at the machine may say that it is ours, once, and for an owner file that can be
// understood.
func TestAcceptedHostChangesHands(t *testing.T) {
	for _, asUser := range []bool{false, true} {
		t.Run(fmt.Sprintf("user %v", asUser), func(t *testing.T) {
			t.Parallel()
			h := newHost(t, behaviour{asUser: asUser})
			m := newMachine(h)
			h.own(t, ownerOf(uuid.New(), uuid.New()))
			steps := &providertest.Steps{OwnerAccepted: true}
			if _, err := newDriver(t, h).StartAgent(t.Context(), m, steps); err != nil {
				t.Fatalf("start on a host that was accepted: %v", err)
			}
			content, err := os.ReadFile(filepath.Join(h.stateDir, agent.OwnerFile))
			must(t, err)
			owner, err := agent.ParseOwner(content)
			must(t, err)
			if owner.DatabaseID != m.DatabaseID || owner.MachineID != m.ID {
				t.Errorf("the host belongs to %s of %s, want %s of %s", owner.MachineID, owner.DatabaseID, m.ID, m.DatabaseID)
			}
			other := m
			other.ID = uuid.New()
			_, err = newDriver(t, h).StartAgent(t.Context(), other, steps)
			wantReason(t, err, provider.ReasonOwnedByAnotherMachine, true)
		})
	}
}
