// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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

// onceFailing is a program that fails the first time that it is used, before or after it has done what it is for.
func onceFailing(t *testing.T, name, when string) string {
	t.Helper()
	program, err := exec.LookPath(name)
	must(t, err)
	once := filepath.Join(t.TempDir(), "once")
	if when == "before" {
		return fmt.Sprintf(`if [ ! -e %[1]s ]; then : >%[1]s; exit 1; fi; exec %[2]s "$@"`, once, program)
	}
	return fmt.Sprintf(`%[2]s "$@"; if [ ! -e %[1]s ]; then : >%[1]s; kill $PPID; fi`, once, program)
}

// TestAcceptedTakeoverIsCompleted: a takeover that was cut off, before the owner file was replaced or before anybody heard of it, is completed
// by the next work without asking the person again. It is that of one owner file: another one that is there then stays, whatever it says.
func TestAcceptedTakeoverIsCompleted(t *testing.T) {
	for _, test := range []struct {
		name, when string
		replaced   bool // by the work that was cut off
	}{{"before it was replaced", "before", false}, {"before the answer", "after", true}} {
		for _, other := range []string{"the same", "another content", "written again", "another host"} {
			t.Run(test.name+", then "+other, func(t *testing.T) {
				t.Parallel()
				h := newHost(t, behaviour{programs: map[string]string{"mv": onceFailing(t, "mv", test.when)}})
				m, d := newMachine(h), newDriver(t, h)
				former := ownerOf(uuid.New(), uuid.New())
				h.own(t, former)
				steps := &providertest.Steps{OwnerAccepted: true}
				if _, err := d.StartAgent(t.Context(), m, steps); err == nil {
					t.Fatal("what was cut off succeeded")
				}
				if replaced := h.owner(t) != former; replaced != test.replaced {
					t.Fatalf("replaced: %v, want %v", replaced, test.replaced)
				}
				wants := ""
				switch name := filepath.Join(h.stateDir, agent.OwnerFile); other {
				case "another content":
					wants = ownerOf(uuid.New(), uuid.New())
					must(t, os.WriteFile(name, []byte(wants), 0o600))
				case "written again":
					wants = former
					must(t, os.WriteFile(name+".new", []byte(wants), 0o600))
					must(t, os.Chtimes(name+".new", time.Time{}, time.Now().Add(-time.Hour)))
					must(t, os.Rename(name+".new", name))
				case "another host": // with the very file
					wants = former
					clone := newHost(t, behaviour{})
					must(t, os.Mkdir(clone.stateDir, 0o700))
					must(t, os.Link(name, filepath.Join(clone.stateDir, agent.OwnerFile)))
					h, d, m.Address = clone, newDriver(t, clone), clone.address
				}
				_, err := d.StartAgent(t.Context(), m, steps)
				if other == "the same" || other == "another host" && test.replaced {
					if err != nil {
						t.Fatalf("the takeover is not completed: %v", err)
					}
					if o, err := agent.ParseOwner([]byte(h.owner(t))); err != nil || o.DatabaseID != m.DatabaseID || o.MachineID != m.ID {
						t.Errorf("the owner file is %s", h.owner(t))
					}
					return
				}
				wantReason(t, err, provider.ReasonOwnedByAnotherDatabase, true)
				if got := h.owner(t); got != wants {
					t.Errorf("the owner file is\n%s\nwant it as it was:\n%s", got, wants)
				}
			})
		}
	}
}

// TestOwnerFileWrittenMeanwhileStays: the machine itself looks whether the file that was accepted is still there.
func TestOwnerFileWrittenMeanwhileStays(t *testing.T) {
	t.Parallel()
	h := newHost(t, behaviour{})
	m := newMachine(h)
	h.own(t, ownerOf(uuid.New(), uuid.New()))
	meanwhile, asked := ownerOf(uuid.New(), uuid.New()), 0
	steps := &providertest.Steps{OwnerAccepted: true, OnStep: func(_ int, c providertest.StepCall) error {
		if c.Name == "CheckOwner" {
			asked++
		}
		if c.Name == "CheckOwner" && asked == 2 { // the next that happens on the machine is the replacement
			return os.WriteFile(filepath.Join(h.stateDir, agent.OwnerFile), []byte(meanwhile), 0o600)
		}
		return nil
	}}
	_, err := newDriver(t, h).StartAgent(t.Context(), m, steps)
	wantReason(t, err, provider.ReasonOwnedByAnotherDatabase, true)
	if got := h.owner(t); got != meanwhile {
		t.Errorf("the owner file is\n%s\nwant\n%s", got, meanwhile)
	}
}
