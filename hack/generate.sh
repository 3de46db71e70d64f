#!/usr/bin/env bash
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# generate.sh writes everything that is generated from api/: deep copies, apply configurations and CRDs. It takes the
# path of controller-gen from $CONTROLLER_GEN, and otherwise runs the one that tools.mod pins.
set -euo pipefail

cd "$(dirname "$0")/.."

controller_gen() {
  if [[ -n ${CONTROLLER_GEN:-} ]]; then
    "$CONTROLLER_GEN" "$@"
  else
    go tool -modfile=tools.mod controller-gen "$@"
  fi
}

started=$(mktemp)
trap 'rm -f "$started"' EXIT
touch -d '1 second ago' "$started"

# Without the tool's version in the output, which would otherwise be that of this module when run by "go tool".
controller_gen paths=./api/v1alpha1 object:headerFile=hack/boilerplate.go.txt
controller_gen paths=./api/v1alpha1 applyconfiguration:headerFile=hack/boilerplate.go.txt,omitToolVersion=true
controller_gen paths=./api/v1alpha1 crd:omitToolVersion=true output:crd:dir=config/crd/bases

# What the types no longer have must not stay behind: all that is wanted has just been written.
find api/v1alpha1/applyconfiguration config/crd/bases -type f ! -newer "$started" -delete
