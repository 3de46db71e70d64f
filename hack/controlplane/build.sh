#!/usr/bin/env bash
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# build.sh DIR: makes etcd, kube-apiserver, kube-controller-manager and kubectl in DIR, each with its version in its name
# (DIR/kube-apiserver-v1.37.2), from the modules that the go.mod beside this script pins. What is there is left alone.
set -euo pipefail

module=$(cd "$(dirname "$0")" && pwd)
dir=$(realpath -m "${1:?usage: build.sh DIR}")
once=$module/../build-once.sh

version() { go -C "$module" list -m -f '{{.Version}}' "$1"; }
kubernetes=$(version k8s.io/kubernetes)
etcd=$(version go.etcd.io/etcd/server/v3)

IFS=. read -r major minor _ <<<"${kubernetes#v}"
stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  for value in "gitVersion=$kubernetes" "gitMajor=$major" "gitMinor=$minor" gitTreeState=clean; do
    stamp+=" -X $package.$value"
  done
done

# The nicer word for a shared machine: a first build takes both cores for many minutes.
build() { # NAME VERSION HINT PACKAGE LDFLAGS
  "$once" "$dir/$1-$2" "$3" nice -n 5 go -C "$module" build -ldflags "$5" -o '{}' "$4"
}

build etcd "$etcd" "about half a minute" go.etcd.io/etcd/server/v3 "-s -w"
build kube-apiserver "$kubernetes" "about 9 minutes" k8s.io/kubernetes/cmd/kube-apiserver "$stamp"
build kube-controller-manager "$kubernetes" "about 3 minutes" k8s.io/kubernetes/cmd/kube-controller-manager "$stamp"
build kubectl "$kubernetes" "about a minute" k8s.io/kubernetes/cmd/kubectl "$stamp"
