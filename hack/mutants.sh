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
#   ---
#
# package and test are the arguments of `go test -run ^test$ package`. A mutant must apply, compile, and be noticed; the test must
# pass without it. All of it happens in copies of the working tree. MUTANT_JOBS are tried at once, two by default: tests wait for the
# database more than they work.
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
jobs=${MUTANT_JOBS:-2}
((jobs <= ${#patches[@]})) || jobs=${#patches[@]}
bin=$(realpath -m bin)

# Always the same place, so that the packages of a former run are in the build cache; one run at a time.
copies=$bin/mutants
mkdir -p "$bin"
exec 8>"$bin/.mutants.lock"
flock 8
rm -rf "$copies"
mkdir "$copies"
trap 'rm -rf "$copies"' EXIT
for ((job = 1; job <= jobs; job++)); do
  mkdir "$copies/$job"
  # Files that were deleted but not committed are in git's list and not in the tree.
  git ls-files -z --cached --others --exclude-standard |
    while IFS= read -r -d '' file; do if [[ -e $file ]]; then printf '%s\0' "$file"; fi; done |
    tar -c --null -T - | tar -x -C "$copies/$job"
  git -C "$copies/$job" init -q # so that nothing that asks git finds the repository around it
done
export BMDB_CONTROLPLANE_BIN=${BMDB_CONTROLPLANE_BIN:-$bin}

field() { sed -n "s/^$2: *//p;/^---/q" "$1" | head -n 1; }
# Both are called in a copy. What does not compile proves nothing, so it is told apart from a test that fails.
compile() { go test -c -o package.test "$1" >out.log 2>&1 8>&-; }
run() { (copy=$PWD && cd "$1" && "$copy/package.test" -test.run "^($2)\$" -test.timeout 5m "${@:3}" >"$copy/out.log" 2>&1 8>&-); }

# What the tests say without a mutant, all of a package at once.
declare -A named sound
for patch in "${patches[@]}"; do
  package=$(field "$patch" package) test=$(field "$patch" test)
  [[ -z $package || -z $test || "|${named[$package]:-}|" == *"|$test|"* ]] || named[$package]+="${named[$package]:+|}$test"
done
cd "$copies/1"
for package in "${!named[@]}"; do
  if ! compile "$package"; then
    cat out.log >&2
    echo "$package does not compile without a mutant" >&2
    exit 1
  fi
  run "$package" "${named[$package]}" -test.v || true
  while read -r test; do sound[$package $test]=1; done < <(sed -n 's/^--- PASS: \([^ ]*\) .*/\1/p' out.log)
  cat out.log >>"$copies/sound.log"
done

# try PATCH: in a copy, which it leaves as it was. It says in one line what came of it.
try() {
  local patch=$1 name package test
  name=$(basename "$patch" .patch) package=$(field "$patch" package) test=$(field "$patch" test)
  if [[ -z $package || -z $test ]]; then
    echo "$name: BAD, names no package and test"
  elif [[ -z ${sound[$package $test]:-} ]]; then
    grep -A 20 "^ *--- FAIL: $test" "$copies/sound.log" >&2 || true
    echo "$name: BAD, $test in $package does not pass without the mutant, or does not exist"
  elif ! patch --quiet --force --fuzz=0 --dry-run -p1 <"$patch" >out.log 2>&1; then
    cat out.log >&2
    echo "$name: BAD, does not apply"
  else
    patch --quiet --force --fuzz=0 -p1 <"$patch" >/dev/null
    if ! compile "$package"; then
      cat out.log >&2
      echo "$name: BAD, does not compile"
    elif run "$package" "$test"; then
      echo "$name: SURVIVED, $test in $package did not notice: $(field "$patch" mechanism)"
    else
      echo "$name: killed by $test"
    fi
    patch --quiet --force --reverse -p1 <"$patch" >/dev/null
  fi
}

: >"$copies/results"
workers=()
for ((job = 1; job <= jobs; job++)); do
  (
    cd "$copies/$job"
    for ((i = job - 1; i < ${#patches[@]}; i += jobs)); do try "${patches[i]}" | tee -a "$copies/results"; done
  ) &
  workers+=("$!")
done
for worker in "${workers[@]}"; do wait "$worker"; done

killed=$(grep -c ': killed by ' "$copies/results" || true)
survived=$(grep -c ': SURVIVED, ' "$copies/results" || true)
bad=$((${#patches[@]} - killed - survived))
echo "$killed mutants killed, $survived survived$( ((bad == 0)) || echo ", $bad bad")"
((killed == ${#patches[@]}))
