#!/usr/bin/env bash
# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0
#
# build-once.sh TARGET HINT COMMAND [ARG...]
#
# Makes TARGET with COMMAND unless it is there already. An argument {} of COMMAND stands for the file to write. TARGET
# carries its version in its name, so that "it is there" is all there is to check. Safe with several makes at once: one
# builds, the others wait; TARGET appears complete or not at all. HINT says how long the first time takes.
set -euo pipefail

target=$1 hint=$2
shift 2

if [[ -x $target ]]; then exit 0; fi
dir=$(dirname "$target") name=$(basename "$target")
mkdir -p "$dir"
# What the command writes and says; both vanish with this script, the log only when all went well.
new=$(realpath "$dir")/.$name.$$
log=$new.log

# One lock for the directory: the builds share most of their packages, and two at once would compile them twice.
exec 9>"$dir/.lock"
if ! flock -n 9; then
  echo "waiting for another build in $dir before building $name"
  flock 9
fi
if [[ -x $target ]]; then exit 0; fi

build=
cleanup() {
  if [[ -n $build ]] && kill -0 "$build" 2>/dev/null; then kill "$build" 2>/dev/null || true; fi
  rm -f "$new" "$log"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

args=()
for a in "$@"; do args+=("${a//\{\}/$new}"); done

start=$SECONDS
elapsed() {
  local s=$((SECONDS - start))
  if ((s >= 60)); then printf '%dm%02ds' $((s / 60)) $((s % 60)); else printf '%ds' "$s"; fi
}
say="building $name (first time $hint)"
echo "$say"
"${args[@]}" >"$log" 2>&1 9>&- &
build=$!
# A terminal gets one line that changes every second, a log file a line every half minute.
interval=30
if [[ -t 1 ]]; then interval=1; fi
tick=0
while kill -0 "$build" 2>/dev/null; do
  sleep 1 9>&-
  tick=$((tick + 1))
  if ((tick % interval)) || ! kill -0 "$build" 2>/dev/null; then continue; fi
  if [[ -t 1 ]]; then printf '\r%s ... %s ' "$say" "$(elapsed)"; else echo "$say ... $(elapsed)"; fi
done
if [[ -t 1 && $tick -gt 1 ]]; then echo; fi
if ! wait "$build"; then
  build=
  cat "$log" >&2
  echo "building $name failed after $(elapsed)" >&2
  exit 1
fi
build=
mv -f "$new" "$target"
echo "built $target in $(elapsed)"
