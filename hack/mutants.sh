#!/usr/bin/env bash
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# mutants.sh [PATCH...]: breaks one thing at a time and expects the test that guards it to fail. Without arguments it takes
# hack/mutants/*.patch. A patch begins with lines that name what it breaks and who must notice:
#
#   mechanism: a lost lease refuses the commit
#   package: ./bmdb
#   test: TestFinishAfterTakeover
#
# package and test are the arguments of `go test -run ^test$ package`. A mutant must apply, compile, and be noticed; the
# test must pass without it. All of it happens in a copy of the working tree.
set -euo pipefail

cd "$(dirname "$0")/.."
patches=("$@")
if ((${#patches[@]} == 0)); then
  shopt -s nullglob
  patches=(hack/mutants/*.patch)
fi
if ((${#patches[@]} == 0)); then
  echo "no mutants" >&2
  exit 1
fi
for i in "${!patches[@]}"; do patches[i]=$(realpath "${patches[i]}"); done
bin=$(realpath -m bin)

# Always the same place, so that the packages of a former run are in the build cache; one run at a time.
copy=$bin/mutants
mkdir -p "$bin"
exec 8>"$bin/.mutants.lock"
flock 8
rm -rf "$copy"
mkdir "$copy"
trap 'rm -rf "$copy"' EXIT
# Files that were deleted but not committed are in git's list and not in the tree.
git ls-files -z --cached --others --exclude-standard |
  while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done |
  tar -c --null -T - | tar -x -C "$copy"
export BMDB_CONTROLPLANE_BIN=${BMDB_CONTROLPLANE_BIN:-$bin}
cd "$copy"
git init -q . # so that nothing that asks git finds the repository around it

field() { sed -n "s/^$2: *//p;/^---/q" "$1" | head -n 1; }
run() { go test -count=1 -timeout 5m -run "^$2\$" "$1" >out.log 2>&1 8>&-; }

declare -A sound # tests that passed without a mutant
failed=0
complain() {
  echo "$1" >&2
  failed=$((failed + 1))
}

for patch in "${patches[@]}"; do
  name=$(basename "$patch" .patch)
  package=$(field "$patch" package) test=$(field "$patch" test)
  if [[ -z $package || -z $test ]]; then
    complain "$name: names no package and test"
    continue
  fi
  if [[ -z ${sound[$package $test]:-} ]]; then
    if ! run "$package" "$test" || grep -q 'no tests to run' out.log; then
      cat out.log >&2
      complain "$name: $test in $package does not pass without the mutant, or does not exist"
      continue
    fi
    sound[$package $test]=1
  fi
  if ! patch --quiet --force --fuzz=0 -p1 <"$patch" >out.log 2>&1; then
    cat out.log >&2
    complain "$name: does not apply"
    exit 1 # the copy may be half patched
  fi
  if ! go vet "$package" >out.log 2>&1; then
    cat out.log >&2
    complain "$name: does not compile"
  elif run "$package" "$test"; then
    complain "$name: SURVIVED, $test in $package did not notice: $(field "$patch" mechanism)"
  else
    echo "$name: noticed by $test"
  fi
  patch --quiet --force --reverse -p1 <"$patch" >/dev/null
done

echo "${#patches[@]} mutants, $failed not as they should be"
if ((failed)); then exit 1; fi
