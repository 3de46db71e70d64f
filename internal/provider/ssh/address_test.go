// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"net"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseAddress(t *testing.T) {
	for in, want := range map[string]string{
		"10.7.0.12":            "10.7.0.12:22",
		"10.7.0.12:2222":       "10.7.0.12:2222",
		"R7-U12.Example.ORG":   "r7-u12.example.org:22",
		"host.":                "host:22",
		"host_1:1":             "host_1:1",
		"host:65535":           "host:65535",
		"[2001:DB8::0:1]":      "[2001:db8::1]:22",
		"[2001:db8::1]:2222":   "[2001:db8::1]:2222",
		"[fe80::1%eth0]:22":    "[fe80::1%eth0]:22",
		"[::ffff:10.0.0.1]:22": "[::ffff:10.0.0.1]:22",
	} {
		if got, err := parseAddress(in); err != nil || got.String() != want {
			t.Errorf("%q is %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{
		"", ":", ":22", "host:", "host:0", "host:65536", "host:022", "host:+22", "host:ssh", "host:22:22", "2001:db8::1", "[2001:db8::1",
		"2001:db8::1]", "[10.0.0.1]:22", "[host]:22", "[::1]22", "[::1]:", "[]:22", "a b", "a/b", "user@host", "-host", "a..b", ".", "host\n", "ho\x00st", "hôst",
		strings.Repeat("a", 64), strings.Repeat("a.", 127) + "a",
	} {
		if got, err := parseAddress(in); err == nil {
			t.Errorf("%q is accepted as %q", in, got)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"host", "host:22", "[::1]:22", "10.0.0.1:2222", "[fe80::1%eth0]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseAddress(s)
		if err != nil {
			return
		}
		host, port, err := net.SplitHostPort(a.String())
		if err != nil || host != a.host || port != a.port {
			t.Fatalf("%q: %q splits into %q, %q, %v", s, a, host, port, err)
		}
		if again, err := parseAddress(a.String()); err != nil || again != a {
			t.Errorf("%q: %q is read as %q, %v", s, a, again, err)
		}
	})
}

func FuzzOneLine(f *testing.F) {
	f.Add("a\nb\x1b[31m\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := oneLine(s)
		if !utf8.ValidString(got) || len([]rune(got)) > maxText || strings.ContainsAny(got, "\n\r\x00\x1b\u202e") {
			t.Errorf("%q becomes %q", s, got)
		}
		if again := oneLine(got); again != got {
			t.Errorf("%q becomes %q, and then %q", s, got, again)
		}
	})
}

func TestQuoteIsOneWordToAShell(t *testing.T) {
	for _, s := range []string{"", "a", "a b", "'", "''", `'"'"'`, `\`, `\'`, "$x `x` $(x)", "a\nb\n", "-n", "*", "!x", "é\t\xff"} {
		out, err := exec.Command("sh", "-c", "printf %s "+quote(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q becomes %q, %v", s, out, err)
		}
	}
}
