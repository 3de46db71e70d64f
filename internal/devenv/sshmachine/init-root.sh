#!/bin/sh
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# init-root.sh NAME DIR ADDRESS/BITS SWITCH PORT MAC: pid 1 of a machine until sshd takes its place. It starts in fresh
# mount, network, uts, ipc, pid and time namespaces. SWITCH is the process with the network, PORT the machine's port there.
# The file system is the host's root file system under a layer of the machine's own, DIR/upper.
set -eu

name=$1 dir=$2 address=$3 switch=$4 port=$5 mac=$6

# Network first: /proc is still the host's.
switched() { nsenter --net="/proc/$switch/ns/net" "$@"; }
# The kernel takes the port of the boot before away a moment after its end.
switched ip link del "$port" 2>/dev/null || true
switched ip link add "$port" type veth peer name eth0 address "$mac" netns 1
switched ip link set "$port" master br0
switched ip link set "$port" up
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up
hostname "$name"

# A bind mount of / shows the root file system without what is mounted in it: not the host's /proc, /run or /tmp.
machine=$dir/machine
mount --bind / "$dir/lower"
mount -t overlay -o "nodev,lowerdir=$dir/lower,upperdir=$dir/upper,workdir=$dir/work" overlay "$machine"
install -m 600 "$dir/host_key" "$machine/etc/ssh/bmdb_host_key"

mount -t tmpfs -o mode=755,size=1m dev "$machine/dev"
for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
  set -- $node
  mknod -m 666 "$machine/dev/$1" c "$2" "$3"
done
mkdir "$machine/dev/pts" "$machine/dev/shm"
mount -t devpts -o newinstance,ptmxmode=666 devpts "$machine/dev/pts"
mount -t tmpfs -o mode=1777,size=16m shm "$machine/dev/shm"
ln -s pts/ptmx "$machine/dev/ptmx"
ln -s /proc/self/fd "$machine/dev/fd"
mount -t tmpfs -o mode=755,size=16m run "$machine/run"
mkdir "$machine/run/sshd"
mount -t tmpfs -o mode=1777,size=256m tmp "$machine/tmp"

# Root here is the host's root. What reaches beyond the machine is out of its hands: the knobs of the one kernel are read
# only, and the capabilities to change that, to load code into it or to make nodes for the host's disks are dropped below.
mount -t sysfs -o ro sysfs "$machine/sys"
mount -t proc proc "$machine/proc"
mount --bind "$machine/proc/sys" "$machine/proc/sys"
mount -o remount,bind,ro "$machine/proc/sys"
if [ -e "$machine/proc/sysrq-trigger" ]; then mount --bind "$machine/dev/null" "$machine/proc/sysrq-trigger"; fi
cat /proc/sys/kernel/random/uuid >"$machine/run/boot_id"
mount --bind "$machine/run/boot_id" "$machine/proc/sys/kernel/random/boot_id"

cd "$machine"
pivot_root . mnt
umount -l /mnt
cd /
exec setpriv --bounding-set=-sys_admin,-sys_module,-sys_rawio,-sys_time,-syslog,-mknod,-mac_admin,-mac_override,-bpf,-perfmon \
  /usr/sbin/sshd -D -e -f /etc/ssh/bmdb_sshd_config
