// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"strings"
	"unicode"
)

// maxText bounds what a machine can put into a message.
const maxText = 512

// oneLine makes text of any origin fit for a condition and for a log: one line
// of printable characters, of bounded length.
func oneLine(s string) string {
	s = strings.Join(strings.FieldsFunc(s, unicode.IsSpace), " ")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > maxText {
		s = string(r[:maxText-1]) + "…"
	}
	return s
}

// printableError is an error with a message from somewhere else, as one line.
type printableError struct{ error }

func (e printableError) Error() string { return oneLine(e.error.Error()) }
func (e printableError) Unwrap() error { return e.error }

func printable(err error) error {
	if err == nil {
		return nil
	}
	return printableError{err}
}

// quote makes a word of any string for a POSIX shell. Strings with a NUL, which
// no shell can hold, do not get here: paths and JSON have none.
func quote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
