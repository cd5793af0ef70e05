#!/bin/bash
# Tests and measures the CUDA kernels on the GPU of this machine, in about ten minutes.
#
#   bench/gpu.sh [OUT]      OUT: where the JSON and the logs go; default bench/results/gpu-CHIP-DATE
#
# Needs torch with CUDA, nvcc, cmake, ninja, pybind11, pytest and hypothesis in PYTHON (default python3), and nothing
# from the network. WHEEL=FILE installs that wheel instead of building one.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}

chip=$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))')
out=${1:-bench/results/gpu-$chip-$(date +%Y-%m-%d)}
mkdir -p "$out"
root=$PWD out=$(realpath "$out") site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
failed=()

# step NAME COMMAND...: runs away from the source tree, whose pybatch has no libraries. The output goes to OUT/NAME.log;
# a failure is told at the end.
step() {
  local name=$1
  shift
  echo "== $name"
  if ! (cd "$site" && timeout 300 "$@") >"$out/$name.log" 2>&1; then
    failed+=("$name")
    tail -n 20 "$out/$name.log"
  fi
}

wheel=${WHEEL:-$root}
step install env PYBATCH_CUDA=1 "$PYTHON" -m pip install --no-deps --no-build-isolation --target "$site" "$wheel"
export PYTHONPATH=$site:$root/tests
step tests "$PYTHON" -m pytest -q -c /dev/null --import-mode=importlib "$root/tests/cuda"
for tool in memcheck racecheck; do
  step "$tool" compute-sanitizer --tool "$tool" --error-exitcode 1 "$PYTHON" "$root/bench/gpu_sanitize.py"
done
step kernels "$PYTHON" "$root/bench/gpu_kernels.py" --json "$out/kernels.json"

if ((${#failed[@]})); then
  echo "failed: ${failed[*]} (logs in $out)"
  exit 1
fi
echo "all passed; results in $out"
