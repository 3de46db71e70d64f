// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/pkg/sftp"

	"github.com/bmdb-dev/bmdb-operator/internal/provider"
)

// upload brings the agent's binary to the machine unless it is there.
func (w *work) upload(ctx context.Context) error {
	if err := w.digestAgent(); err != nil {
		return err
	}
	return w.within(ctx, "upload", func(ctx context.Context) error {
		out, err := w.run(ctx, asRoot, w.names()+`
if [ -f "$agent" ] && [ ! -L "$agent" ] && [ -x "$agent" ]; then sha256sum <"$agent" | cut -c 1-64; else echo none; fi`)
		if err != nil || strings.TrimSpace(string(out)) == w.digest {
			return err
		}
		if w.root {
			return w.uploadAsRoot(ctx)
		}
		return w.uploadAsUser(ctx)
	})
}

// digestAgent reads the agent for the machine once, to know its digest. It is
// read again to be uploaded, so that no work holds it in memory.
func (w *work) digestAgent() error {
	content, size, err := w.openAgent()
	if err != nil {
		return err
	}
	h := sha256.New()
	n, err := io.Copy(h, content)
	if err := errors.Join(err, content.Close()); err != nil {
		return w.fail(provider.ReasonUploadFailed, false, err, "read agent for %s", w.goarch)
	}
	if n != size {
		return w.fail(provider.ReasonUploadFailed, false, nil, "the agent for %s has %d bytes, and not %d", w.goarch, n, size)
	}
	w.digest = hex.EncodeToString(h.Sum(nil))
	return nil
}

func (w *work) openAgent() (io.ReadCloser, int64, error) {
	content, size, err := w.driver.binary(w.goarch)
	if errors.Is(err, os.ErrNotExist) {
		return nil, 0, w.fail(provider.ReasonArchitectureUnsupported, true, nil, "there is no agent for %s", w.goarch)
	}
	if err != nil {
		return nil, 0, w.fail(provider.ReasonUploadFailed, false, err, "open agent for %s", w.goarch)
	}
	return content, size, nil
}

// uploadAsRoot writes next to where the binary shall be.
func (w *work) uploadAsRoot(ctx context.Context) error {
	// What an earlier upload left is of no use, even to one that still runs.
	if _, err := w.run(ctx, asRoot, w.names()+`rm -f "$dir"/.agent.*`); err != nil {
		return err
	}
	temporary := w.file(".agent." + rand.Text())
	if err := w.put(temporary); err != nil {
		return err
	}
	return w.install(ctx, "temporary="+quote(temporary))
}

// uploadAsUser writes to a directory of the user's own, from where root copies.
func (w *work) uploadAsUser(ctx context.Context) error {
	out, err := w.run(ctx, asUser, `
rm -rf "${TMPDIR:-/tmp}"/bmdb-agent.?????????? 2>/dev/null
umask 077
mktemp -d "${TMPDIR:-/tmp}/bmdb-agent.XXXXXXXXXX"`)
	if err != nil {
		return err
	}
	dir := strings.TrimSuffix(string(out), "\n")
	if !path.IsAbs(dir) || strings.ContainsAny(dir, "\n\x00") {
		return w.fail(provider.ReasonUploadFailed, false, nil, "the machine made no temporary directory: %q", dir)
	}
	uploaded := path.Join(dir, "agent")
	if err := w.put(uploaded); err != nil {
		return err
	}
	if err := w.install(ctx, `
umask 077
rm -f "$dir"/.agent.*
temporary=$(mktemp "$dir/.agent.XXXXXXXXXX") || return 73
cat `+quote(uploaded)+` >"$temporary" || return 73`); err != nil {
		return err
	}
	_, err = w.run(ctx, asUser, "rm -rf "+quote(dir))
	return err
}

// install gives the binary its name, once it is whole: its digest is checked
// where nobody else can write any more.
func (w *work) install(ctx context.Context, prepare string) error {
	_, err := w.run(ctx, asRoot, w.names()+prepare+`
if [ "$(sha256sum <"$temporary" | cut -c 1-64)" != `+w.digest+` ]; then
	rm -f "$temporary"
	echo "what arrived is not what was sent" >&2
	return 74
fi
chmod 0700 "$temporary" || return 73
sync "$temporary" 2>/dev/null
mv -f "$temporary" "$agent" || return 73
sync "$dir" 2>/dev/null
return 0`)
	if err != nil && provider.ReasonOf(err) == provider.ReasonCommandFailed {
		return w.fail(provider.ReasonUploadFailed, false, errors.Unwrap(err), "install")
	}
	return err
}

// put writes the agent to a new file on the machine.
func (w *work) put(name string) (err error) {
	content, size, err := w.openAgent()
	if err != nil {
		return err
	}
	defer func() { _ = content.Close() }() // was only read
	// Many writes under way at a time: a file that fails may have holes, but
	// its digest is checked, and far machines are slow otherwise.
	client, err := sftp.NewClient(w.client, sftp.UseConcurrentWrites(true))
	if err != nil {
		return w.fail(provider.ReasonUploadFailed, false, err, "start SFTP")
	}
	defer func() { _ = client.Close() }() // everything was acknowledged, or has failed
	file, err := client.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return w.fail(provider.ReasonUploadFailed, false, err, "create %s", name)
	}
	n, err := file.ReadFrom(io.LimitReader(content, size))
	if err := errors.Join(err, file.Close()); err != nil {
		return w.fail(provider.ReasonUploadFailed, false, err, "write %s", name)
	}
	if n != size {
		return w.fail(provider.ReasonUploadFailed, false, fmt.Errorf("%d bytes of %d", n, size), "write %s", name)
	}
	return nil
}
