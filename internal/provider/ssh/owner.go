// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"

	"github.com/bmdb-dev/bmdb-operator/agent"
	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// ownerFile is an owner file as it was found.
type ownerFile struct {
	agent.Owner
	place  string // its inode and time, as stat(1) has them
	digest string // of its content
}

// checkOwner makes sure that the machine is the one that we take it for, and
// says so on it where nothing does. It writes nothing to a machine that belongs
// to somebody else, and nothing where that is not clear.
//
// Where a person accepted that a host changes hands, the acceptance is bound to
// the file that is there before it is replaced, not used up after: whatever is
// cut off in between, the next work finds either that file, which it may still
// replace, or ours. Bound after, it would be there for a second host whenever
// the answer of the first was lost. And the machine itself looks once more
// whether it is that file, so that one that another wrote meanwhile stays.
func (w *work) checkOwner(ctx context.Context) error {
	var found *ownerFile
	if err := w.within(ctx, "reading the owner file", func(ctx context.Context) (err error) {
		found, err = w.readOwner(ctx)
		return err
	}); err != nil {
		return err
	}
	if found != nil {
		refusal := w.compareOwner(found.Owner)
		if refusal == nil {
			return nil
		}
		// A person may have looked at the machine and decided otherwise.
		accepted, err := w.steps.UseOwnerAcceptance(ctx, w.which(found))
		if err != nil {
			return fmt.Errorf("%s: %w", w.what(), err)
		}
		if !accepted {
			return refusal
		}
	}
	// Now something will be written.
	if err := w.ask(ctx); err != nil {
		return err
	}
	return w.within(ctx, "writing the owner file", func(ctx context.Context) error {
		written, err := w.writeOwner(ctx, found)
		if err != nil {
			return err
		}
		return w.compareOwner(written)
	})
}

// which tells an owner file from all others: on another host, in another place,
// written again with the same content, or with another.
func (w *work) which(f *ownerFile) []byte {
	return fmt.Appendf(nil, "%x %s %s", sha256.Sum256(w.hostKey), f.place, f.digest)
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

// placeFormat makes stat(1) say where a file is and since when: another file that
// has the same name later differs.
const placeFormat = "%i:%Y"

// readOwner returns nil where there is no owner file.
func (w *work) readOwner(ctx context.Context) (*ownerFile, error) {
	out, err := w.run(ctx, asRoot, w.names()+`
if [ -L "$dir" ]; then echo unclear it is a link; return; fi
if [ ! -e "$dir" ]; then echo absent; return; fi
if [ ! -d "$dir" ]; then echo unclear it is no directory; return; fi
of=$(stat -c %u "$dir") && mode=$(stat -c %a "$dir") || return 70
if [ "$of" != "$(id -u)" ]; then echo "unclear it belongs to user $of"; return; fi
case $mode in *[2367]?|*[2367]) echo "unclear others can write it (mode $mode)"; return;; esac
if [ ! -e "$owner" ] && [ ! -L "$owner" ]; then echo absent; return; fi
if [ -L "$owner" ] || [ ! -f "$owner" ]; then echo unclear its owner.json is no file; return; fi
place=$(stat -c '`+placeFormat+`' "$owner") || return 70
echo "present $place"
head -c `+fmt.Sprint(agent.MaxOwnerBytes+1)+` "$owner" || return 70`)
	if err != nil {
		return nil, err
	}
	word, content, _ := bytes.Cut(out, []byte("\n"))
	if why, ok := strings.CutPrefix(string(word), "unclear "); ok {
		return nil, w.fail(provider.ReasonOwnerUnclear, true, nil, "%s: %s; nothing was done", w.driver.stateDir, why)
	}
	switch place, present := strings.CutPrefix(string(word), "present "); {
	case string(word) == "absent":
		return nil, nil
	case present:
		o, err := w.parseOwner(content)
		if err != nil {
			return nil, err
		}
		return &ownerFile{*o, place, fmt.Sprintf("%x", sha256.Sum256(content))}, nil
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
// Where a person accepted that the host changes hands, it takes the place of
// former, if that still is what is there.
func (w *work) writeOwner(ctx context.Context, former *ownerFile) (agent.Owner, error) {
	name := `if ! ln "$temporary" "$owner" && [ ! -e "$owner" ]; then return 73; fi`
	if former != nil {
		name = `place=$(stat -c '` + placeFormat + `' "$owner") && digest=$(sha256sum <"$owner" | cut -c 1-64) || return 70
if [ "$place $digest" = ` + quote(former.place+" "+former.digest) + ` ]; then mv -f "$temporary" "$owner" || return 73; fi`
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
