#!/bin/bash
# Tests and measures the CUDA kernels on this machine's GPU, within ten minutes.
#
#   bench/gpu.sh [STEP...]      all steps, in this order, as far as the time goes: install bits untried tests memcheck
#                               kernels profile models fuzz racecheck
#
# Results go to OUT (default bench/results/gpu-CHIP-DATE), each as its step ends: summary.json, bits.json, kernels.json,
# kernels-untried.json, models.json, logs.tar.gz. A step that fails or takes too long is told of at the end, with the end
# of its log; the others go on. What install has built stays in build/gpu/site, for later calls with other steps, and on
# machines like this one.
#
# Needs torch with CUDA, nvcc, cmake, ninja, pybind11, pytest, hypothesis and what pybatch depends on in PYTHON (default
# python3), and nothing from the network. WHEEL=FILE installs that wheel instead of building one; without the step install
# a build/gpu/site that `make hopper` built elsewhere is used. LIMIT=SECONDS is for all steps together; SUITES=REGEX: of
# the tests, those suites.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
root=$PWD site=$PWD/build/gpu/site limit=${LIMIT:-580}
steps=("$@")
((${#steps[@]})) || steps=(install bits untried tests memcheck kernels profile models fuzz racecheck)

chip=$(timeout 60 "$PYTHON" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))') || exit
out=${OUT:-bench/results/gpu-$chip-$(date +%Y-%m-%d)}
logs=$(mktemp -d) failed=() summary=()
trap 'rm -rf "$logs"' EXIT
mkdir -p "$out" "$site"
out=$(realpath "$out")

# step NAME SECONDS COMMAND...: away from the source tree, whose pybatch has no libraries.
step() {
  local name=$1 most=$2 begin=$SECONDS status=0
  shift 2
  ((most > limit - begin)) && most=$((limit - begin))
  echo "== $name (at $begin s)"
  if ((most < 5)); then
    status=skipped
  else
    (cd "$site" && timeout -k 5 "$most" "$@") >"$logs/$name.log" 2>&1 || status=$?
    tail -n "$( ((status)) && echo 40 || echo "${show:-3}")" "$logs/$name.log"
  fi
  [[ $status == 0 ]] || failed+=("$name ($status)")
  summary+=("{\"step\": \"$name\", \"status\": \"$status\", \"seconds\": $((SECONDS - begin))}")
  (IFS=, && echo "{\"chip\": \"$chip\", \"date\": \"$(date -u +%FT%TZ)\", \"steps\": [${summary[*]}]}") >"$out/summary.json"
  tar -czf "$out/logs.tar.gz" -C "$logs" .
}
# tool NAME: of CUDA, on the PATH or where it usually is.
tool() { command -v "$1" || echo "/usr/local/cuda/bin/$1"; }

sanitize() {
  # Without torch's cache every tensor is an allocation of its own, past whose end there is nothing.
  step "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    "$(tool compute-sanitizer)" --tool "$1" --error-exitcode 1 "$PYTHON" "$root/bench/gpu_sanitize.py"
}

run_install() {
  step install 240 env PYBATCH_CUDA=1 "$PYTHON" -m pip install --upgrade --no-deps --no-build-isolation --no-index \
    --disable-pip-version-check --target "$site" "${WHEEL:-$root}"
  step environment 60 "$PYTHON" -c 'from pybatch.cli import main; main()' env
}
run_bits() {
  [[ -x $root/build/gpu/bits ]] || step compile_bits 90 "$(tool nvcc)" -std=c++20 -gencode=arch=compute_90a,code=sm_90a \
    -o "$root/build/gpu/bits" "$root/bench/tensor_core_bits.cu"
  show=90 step bits 60 "$root/build/gpu/bits"
  [[ ! -s $logs/bits.log ]] || cp "$logs/bits.log" "$out/bits.json"
}
# A process a suite, all side by side: after one bad access CUDA does nothing more for a process.
run_tests() {
  local suite tests
  tests=$(cd "$root" && timeout 60 "$PYTHON" -P -m pytest -q --collect-only tests/cuda/test_ops.py | grep ::)
  {
    for suite in $(timeout 60 "$PYTHON" -P -c 'import backends; print(*backends.SUITES)'); do
      grep -E "_${suite#test_}(\[|$)" <<<"$tests" >"$logs/$suite.tests"
      [[ $suite != test_attention ]] || sed -i '/_linear_attention/d' "$logs/$suite.tests"
      [[ ! -s $logs/$suite.tests ]] || echo "$suite @$logs/$suite.tests"  # pytest without a name runs them all
    done
    for suite in graphs matmul_hopper model pruning swap twins; do echo "$suite tests/cuda/test_$suite.py"; done
    echo "invariance tests/engine/test_invariance.py -k cuda"
  } | grep -E "^(${SUITES:-.*}) " >"$logs/suites"
  show=60 step "${1:-tests}" 200 "$root/bench/gpu_tests.sh" "$logs"
}
run_profile() {
  local kernel
  for kernel in "attention_kernel:decode group 4" "matmul_kernel:w8a16 8 x 6144"; do
    step "profile_${kernel%%:*}" 60 "$(tool ncu)" --target-processes all -k "regex:${kernel%%:*}" -c 1 --set full \
      --import-source no "$PYTHON" "$root/bench/gpu_kernels.py" --quick --only "^${kernel#*:}"
  done
}
run_kernels() { step kernels 150 "$PYTHON" "$root/bench/gpu_kernels.py" --json "$out/kernels.json"; }
# What PYBATCH_UNTRIED=1 takes besides: a step of its own, for it may never end.
run_untried() {
  export PYBATCH_UNTRIED=1
  SUITES="test_attention|test_norm|matmul_hopper|graphs|model|invariance" run_tests tests_untried
  step kernels_untried 90 "$PYTHON" "$root/bench/gpu_kernels.py" --only "^prefill|^(dense|w8a|float8).* [0-9]{3,} x .* x " --json "$out/kernels-untried.json"
  unset PYBATCH_UNTRIED
}
run_models() { step models 200 "$PYTHON" "$root/bench/gpu_models.py" --json "$out/models.json"; }
run_fuzz() { step fuzz 60 "$PYTHON" "$root/tests/fuzz.py" cuda --batches 100000 --seconds 45 --jobs 4; }
run_memcheck() { sanitize memcheck 100; }
run_racecheck() { sanitize racecheck 100; }

export PYTHON PYTHONPATH=$site:$root/tests${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
for name in "${steps[@]}"; do "run_$name"; done

if ((${#failed[@]})); then
  echo "failed: ${failed[*]} (logs in $out/logs.tar.gz)"
  exit 1
fi
echo "all passed; results in $out"
