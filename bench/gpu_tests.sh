#!/bin/bash
# The suites that LOGS/suites lists (a name and pytest's arguments a line), a process each, side by side.
#
#   bench/gpu_tests.sh LOGS     as bench/gpu.sh runs it, whose environment it needs
set -uo pipefail
root=$(realpath "$(dirname "$0")/..") logs=$1

suite() {
  local name=$1 status=0
  shift
  # In the foreground, which is this script's group of processes: they end with it.
  (cd "$root" && exec timeout --foreground -k 5 150 "$PYTHON" -P -m pytest -p no:cacheprovider --durations=3 --tb=short --maxfail=5 \
    "$@") >"$logs/tests-$name.log" 2>&1 || status=$?
  echo "$name ($status): $(grep -aE "passed|failed|error|skipped" "$logs/tests-$name.log" | tail -n 1)"
  ((status == 0)) || grep -aE "^(FAILED|ERROR|E  )" "$logs/tests-$name.log" | cut -c 1-200 | head -n 12
  return "$status"
}
export -f suite
export root logs
xargs -d '\n' -P 16 -I{} bash -c 'suite {}' <"$logs/suites"
