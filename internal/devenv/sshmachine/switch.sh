#!/bin/sh
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# switch.sh PID INTERFACE: the network that machines hang on, in the network namespace that this process starts in: a
# bridge, with INTERFACE as the way to it in the network namespace of process PID. It lasts as long as this process.
set -eu

ip link set lo up
ip link add br0 type bridge
ip link set br0 up
ip link add uplink type veth peer name "$2" netns "$1"
ip link set uplink master br0
ip link set uplink up
exec sleep infinity
