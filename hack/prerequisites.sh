#!/usr/bin/env bash
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# prerequisites.sh demo|test|bench: sees that the programs are there that the demo, the tests or the benchmarks run, on Debian 12 or what is
# like it. Root gets what is missing installed, and is told before; anybody else is told what to do. Silent when nothing
# is missing.
set -euo pipefail

purpose=${1:?usage: prerequisites.sh demo|test|bench}
root=
if [[ $(id -u) == 0 ]]; then root=1; fi
PATH=$PATH:/usr/sbin:/sbin

missing=()
need() { # PACKAGE PROGRAM...
  local package=$1 program
  shift
  for program in "$@"; do
    if ! command -v "$program" >/dev/null; then
      missing+=("$package")
      return
    fi
  done
}

# What compgen prints, is there: Debian keeps the server's programs out of PATH, by version.
if [[ -z ${BMDB_POSTGRES_BIN:-} ]] && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
  need postgresql initdb postgres
fi
if [[ $purpose == test ]]; then
  # The race detector needs cgo.
  need gcc gcc
  if [[ ! -e /usr/include/stdlib.h ]]; then missing+=(libc6-dev); fi
  need patch patch
  # The image has them too.
  if [[ ! -e /etc/ssl/certs/ca-certificates.crt ]]; then missing+=(ca-certificates); fi
fi
if [[ -n $root && $purpose != bench ]]; then
  # Machines of their own in network namespaces; without root they are servers inside the program, which need nothing.
  need openssh-server sshd
  need iproute2 ip
  need util-linux unshare nsenter setpriv
fi
need git git

if ((${#missing[@]} == 0)); then exit 0; fi

if [[ -z $root ]]; then
  echo "missing on this machine: ${missing[*]}. Install with:" >&2
  echo "  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
if ! command -v apt-get >/dev/null; then
  echo "missing on this machine: ${missing[*]} (Debian's package names). There is no apt-get here: install them by other means." >&2
  exit 1
fi

echo "installing Debian packages: ${missing[*]} (their services are not started)"
# Debian asks this script before it starts a service; 101 is no.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
  trap 'rm -f "$policy"' EXIT
fi
log=$(mktemp)
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 </dev/null; then
  tail -n 30 "$log" >&2
  echo "installing failed; the whole log is $log" >&2
  exit 1
fi
rm -f "$log"
