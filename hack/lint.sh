#!/usr/bin/env bash
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# lint.sh: the rules of the house that golangci-lint has no linter for.
set -euo pipefail

cd "$(dirname "$0")/.."
failed=0
complain() {
  echo "$1" >&2
  failed=1
}

mapfile -t scripts < <(git ls-files -- '*.sh' .ci/run)
for script in "${scripts[@]}"; do
  bash -n "$script" || failed=1
  grep -q '^# SPDX-License-Identifier: Apache-2.0$' "$script" || complain "$script: no licence header"
done

# A Reconcile that grows is a phase that was not given its own function.
mapfile -t files < <(git ls-files -- '*.go' ':!:*_test.go')
if ((${#files[@]})); then
  long=$(awk -v max=75 '
    FNR == 1 { start = 0 }
    /^func \([^)]*\) Reconcile\(/ { start = FNR }
    start && /^}/ { if (FNR - start + 1 > max) print FILENAME ":" start ": Reconcile has " FNR - start + 1 " lines, " max " are allowed"; start = 0 }
  ' "${files[@]}")
  if [[ -n $long ]]; then complain "$long"; fi
fi

# What a state's number means is known in the queries and in statements*.go, nowhere else.
numbers=$(git grep -nE '\bstate *(=|<>|!=|IN \() *[0-9]' -- '*.go' ':!:bmdb/statements*.go' ':!:bmdb/model' ':!:*_test.go' || true)
if [[ -n $numbers ]]; then complain "$numbers: states have names"; fi

# The library serves programs that have no Kubernetes.
foreign=$(go list -deps ./bmdb/... | grep -E '^(k8s\.io|sigs\.k8s\.io|github\.com/prometheus)/' || true)
if [[ -n $foreign ]]; then complain "bmdb depends on: ${foreign//$'\n'/ }"; fi

exit "$failed"
