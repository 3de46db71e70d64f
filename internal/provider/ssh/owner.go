// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"context"
	"fmt"
	"strings"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// checkOwner makes sure that the machine is the one that we take it for, and
// says so on it where nothing does. It writes nothing to a machine that belongs
// to somebody else, and nothing where that is not clear.
func (w *work) checkOwner(ctx context.Context) error {
	var found *agent.Owner
	if err := w.within(ctx, "reading the owner file", func(ctx context.Context) (err error) {
		found, err = w.readOwner(ctx)
		return err
	}); err != nil {
		return err
	}
	replace := false
	if found != nil {
		refusal := w.compareOwner(*found)
		if refusal == nil {
			return nil
		}
		// A person may have looked at the machine and decided otherwise.
		var err error
		if replace, err = w.steps.UseOwnerAcceptance(ctx); err != nil {
			return fmt.Errorf("%s: %w", w.what(), err)
		}
		if !replace {
			return refusal
		}
	}
	// Now something will be written.
	if err := w.ask(ctx); err != nil {
		return err
	}
	return w.within(ctx, "writing the owner file", func(ctx context.Context) error {
		written, err := w.writeOwner(ctx, replace)
		if err != nil {
			return err
		}
		return w.compareOwner(written)
	})
}

func (w *work) compareOwner(found agent.Owner) error {
	switch {
	case found.DatabaseID != w.machine.DatabaseID:
		return w.fail(provider.ReasonOwnedByAnotherDatabase, true, nil,
			"%s says that the machine belongs to database %s, as its machine %s; ours is %s; nothing was done",
			w.file(agent.OwnerFile), found.DatabaseID, found.MachineID, w.machine.DatabaseID)
	case found.MachineID != w.machine.ID:
		return w.fail(provider.ReasonOwnedByAnotherMachine, true, nil,
			"%s says that this is machine %s (%s/%s), not %s; nothing was done",
			w.file(agent.OwnerFile), found.MachineID, found.Pool, found.Name, w.machine.ID)
	default:
		return nil
	}
}

// readOwner returns nil where there is no owner file.
func (w *work) readOwner(ctx context.Context) (*agent.Owner, error) {
	out, err := w.run(ctx, asRoot, w.names()+`
if [ -L "$dir" ]; then echo unclear it is a link; return; fi
if [ ! -e "$dir" ]; then echo absent; return; fi
if [ ! -d "$dir" ]; then echo unclear it is no directory; return; fi
of=$(stat -c %u "$dir") && mode=$(stat -c %a "$dir") || return 70
if [ "$of" != "$(id -u)" ]; then echo "unclear it belongs to user $of"; return; fi
case $mode in *[2367]?|*[2367]) echo "unclear others can write it (mode $mode)"; return;; esac
if [ ! -e "$owner" ] && [ ! -L "$owner" ]; then echo absent; return; fi
if [ -L "$owner" ] || [ ! -f "$owner" ]; then echo unclear its owner.json is no file; return; fi
echo present
head -c `+fmt.Sprint(agent.MaxOwnerBytes+1)+` "$owner" || return 70`)
	if err != nil {
		return nil, err
	}
	word, content, _ := bytes.Cut(out, []byte("\n"))
	if why, ok := strings.CutPrefix(string(word), "unclear "); ok {
		return nil, w.fail(provider.ReasonOwnerUnclear, true, nil, "%s: %s; nothing was done", w.driver.stateDir, why)
	}
	switch string(word) {
	case "absent":
		return nil, nil
	case "present":
		return w.parseOwner(content)
	default:
		return nil, w.fail(provider.ReasonCommandFailed, false, nil, "the machine does not say whether it has an owner: %q", word)
	}
}

func (w *work) parseOwner(content []byte) (*agent.Owner, error) {
	o, err := agent.ParseOwner(content)
	if err != nil {
		return nil, w.fail(provider.ReasonOwnerUnclear, true, err, "%s cannot be understood; nothing was done", w.file(agent.OwnerFile))
	}
	return &o, nil
}

// writeOwner writes the owner file and returns what it says then. The file is
// linked to its name, not renamed: of two that write at the same time one finds
// it there and reads the other's. It is whole and durable before it has the name.
// Where a person accepted that the host changes hands, replace takes the place of
// the file that is there.
func (w *work) writeOwner(ctx context.Context, replace bool) (agent.Owner, error) {
	name := `if ! ln "$temporary" "$owner" && [ ! -e "$owner" ]; then return 73; fi`
	if replace {
		name = `mv -f "$temporary" "$owner" || return 73`
	}
	m := w.machine
	content, err := agent.Owner{
		DatabaseID: m.DatabaseID, MachineID: m.ID, Pool: m.Pool, Name: m.Name, Provider: m.Provider, ProviderID: m.ProviderID,
	}.Encode()
	if err != nil {
		return agent.Owner{}, err
	}
	out, err := w.run(ctx, asRoot, w.names()+`
umask 077
mkdir -p "$dir" && [ ! -L "$dir" ] && chmod 0700 "$dir" || return 73
temporary=$(mktemp "$dir/.owner.XXXXXX") || return 73
trap 'rm -f "$temporary"' EXIT
printf %s `+quote(string(content))+` >"$temporary" || return 73
sync "$temporary" 2>/dev/null
`+name+`
sync "$dir" 2>/dev/null
cat "$owner" || return 70`)
	if err != nil {
		return agent.Owner{}, err
	}
	o, err := w.parseOwner(out)
	if err != nil {
		return agent.Owner{}, err
	}
	return *o, nil
}

// names sets the names that scripts use.
func (w *work) names() string {
	return "dir=" + quote(w.driver.stateDir) + ` owner="$dir/` + agent.OwnerFile + `" agent="$dir/` + agent.BinaryFile +
		`" log="$dir/` + agent.LogFile + `"` + "\n"
}

// file is the name of a file of the agent's on the machine.
func (w *work) file(name string) string { return w.driver.stateDir + "/" + name }
