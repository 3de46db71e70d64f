#!/bin/sh
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# init-user.sh NAME DIR: pid 1 of a machine made without root. It starts in fresh user, mount, uts, ipc and pid namespaces,
# as the only user there, called root. The file system is the host's, which this user can read; what machines write to is
# the machine's own, in DIR.
set -eu

name=$1 dir=$2

hostname "$name"
mount -t proc proc /proc
mount -t tmpfs -o mode=755,size=16m run /run
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
for file in machine-id hostname; do
  if [ -e "/etc/$file" ]; then mount --bind "$dir/$file" "/etc/$file"; fi
done
mount --bind "$dir/root" /root
mount --bind "$dir/lib" /var/lib
# Last, because DIR may be in it.
mount -t tmpfs -o mode=1777,size=256m tmp /tmp
: >/run/booted

# While it waits, a shell also takes leave of the children that other processes left to pid 1.
while :; do
  sleep 86400 &
  wait $!
done
