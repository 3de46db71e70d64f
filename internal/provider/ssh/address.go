// Copyright The BMDB Operator Authors.
// SPDX-License-Identifier: Apache-2.0

package ssh

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

const defaultPort = "22"

// address is where a machine answers.
type address struct{ host, port string }

// String is what is dialled, and what known hosts are looked up by.
func (a address) String() string { return net.JoinHostPort(a.host, a.port) }

// parseAddress reads host, host:port, [v6] or [v6]:port; names are in lower
// case then, and addresses in their shortest form. An IPv6 address without
// brackets is refused: nobody can tell where its port begins.
func parseAddress(s string) (address, error) {
	if strings.HasPrefix(s, "[") {
		return parseBracketed(s[1:])
	}
	if strings.Count(s, ":") > 1 {
		return address{}, errors.New("an IPv6 address stands in brackets: [address]:port")
	}
	host, port, hasPort := strings.Cut(s, ":")
	if host = strings.ToLower(strings.TrimSuffix(host, ".")); !isHost(host) {
		return address{}, errors.New("this is neither a host's name nor an IP address")
	}
	if !hasPort {
		port = defaultPort
	}
	return address{host, port}, checkPort(port)
}

// parseBracketed reads what follows an opening bracket.
func parseBracketed(s string) (address, error) {
	host, rest, closed := strings.Cut(s, "]")
	if !closed {
		return address{}, errors.New("a bracket is not closed")
	}
	ip, err := netip.ParseAddr(host)
	if err != nil || !ip.Is6() {
		return address{}, errors.New("in brackets is no IPv6 address")
	}
	port := defaultPort
	if rest != "" {
		var ok bool
		if port, ok = strings.CutPrefix(rest, ":"); !ok {
			return address{}, errors.New("the bracket is followed by something else than a port")
		}
	}
	return address{ip.String(), port}, checkPort(port)
}

func checkPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return errors.New("the port is not a number from 1 to 65535")
	}
	return nil
}

// isHost accepts names as DNS and /etc/hosts have them, and IPv4 addresses.
func isHost(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
				return false
			}
		}
	}
	return true
}
