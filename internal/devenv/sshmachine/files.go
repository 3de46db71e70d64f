// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package sshmachine

import (
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/pkg/sftp"
)

// files serves a machine's file system by SFTP. Symbolic links that are absolute are not followed.
type files struct{ root *os.Root }

// local makes a path of the client relative to the root.
func local(path string) string {
	if path = strings.TrimLeft(path, "/"); path != "" {
		return path
	}
	return "."
}

// Fileread implements sftp.FileReader.
func (f *files) Fileread(r *sftp.Request) (io.ReaderAt, error) { return f.root.Open(local(r.Filepath)) }

// Filewrite implements sftp.FileWriter.
func (f *files) Filewrite(r *sftp.Request) (io.WriterAt, error) {
	flags := r.Pflags()
	mode := os.O_WRONLY
	for _, flag := range []struct {
		set  bool
		mode int
	}{{flags.Creat, os.O_CREATE}, {flags.Trunc, os.O_TRUNC}, {flags.Excl, os.O_EXCL}} {
		if flag.set {
			mode |= flag.mode
		}
	}
	return f.root.OpenFile(local(r.Filepath), mode, 0o644)
}

// Filecmd implements sftp.FileCmder.
func (f *files) Filecmd(r *sftp.Request) error {
	path := local(r.Filepath)
	switch r.Method {
	case "Setstat":
		return f.setstat(path, r)
	case "Rename":
		// As in the protocol's version 3, a target that exists is an error.
		if _, err := f.root.Lstat(local(r.Target)); err == nil {
			return os.ErrExist
		}
		return f.root.Rename(path, local(r.Target))
	case "Remove", "Rmdir":
		return f.root.Remove(path)
	case "Mkdir":
		return f.root.Mkdir(path, 0o755)
	case "Symlink":
		return f.root.Symlink(r.Filepath, local(r.Target))
	case "Link":
		return f.root.Link(path, local(r.Target))
	default:
		return sftp.ErrSSHFxOpUnsupported
	}
}

// PosixRename implements sftp.PosixRenameFileCmder.
func (f *files) PosixRename(r *sftp.Request) error {
	return f.root.Rename(local(r.Filepath), local(r.Target))
}

func (f *files) setstat(path string, r *sftp.Request) error {
	flags, attributes := r.AttrFlags(), r.Attributes()
	if flags.Permissions {
		if err := f.root.Chmod(path, attributes.FileMode().Perm()); err != nil {
			return err
		}
	}
	if flags.Size {
		file, err := f.root.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer file.Close()
		return file.Truncate(int64(attributes.Size))
	}
	return nil
}

// Filelist implements sftp.FileLister.
func (f *files) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	path := local(r.Filepath)
	if r.Method == "List" {
		dir, err := f.root.Open(path)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		found, err := dir.Readdir(-1)
		return listing(found), err
	}
	info, err := f.root.Stat(path)
	if err != nil {
		return nil, err
	}
	return listing{info}, nil
}

// Lstat implements sftp.LstatFileLister.
func (f *files) Lstat(r *sftp.Request) (sftp.ListerAt, error) {
	info, err := f.root.Lstat(local(r.Filepath))
	if err != nil {
		return nil, err
	}
	return listing{info}, nil
}

type listing []fs.FileInfo

// ListAt implements sftp.ListerAt.
func (l listing) ListAt(into []fs.FileInfo, offset int64) (int, error) {
	if offset >= int64(len(l)) {
		return 0, io.EOF
	}
	n := copy(into, l[offset:])
	if n < len(into) {
		return n, io.EOF
	}
	return n, nil
}
