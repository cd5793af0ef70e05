"""Planted faults: each mutation of a kernel, alone, is caught by that kernel's probe, and without one the probe passes.

What is caught is a fault that the layer reports, a wrong result, or a bit that depends on the batch.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from simt import compile, probes
from simt.device import SimtFault, SimtOps


@dataclass(frozen=True)
class Mutation:
    what: str
    file: str
    before: str
    after: str
    probe: Callable[[SimtOps], None]

    def __str__(self) -> str:
        return self.what


ATTENTION = ["attention.cu", "attention_simple.cu", "attention_int8.cu", "sm90/attention.cu"]
# What copies of the kernels are without, as it takes most of the compiler's time: probes have heads of 64 elements, and
# of 16-bit types float16 alone.
NARROWED = [
    (
        "attention_kernel.cuh",
        """
  if (head_dim <= 128) return f(std::integral_constant<int, 128>());
  return f(std::integral_constant<int, 256>());
""",
        "\n",
    ),
    ("sm90/attention.cu", " : run(std::integral_constant<int, 128>());", " : void();"),
    ("common.cuh", " : f(static_cast<bf16*>(nullptr));\n}\n\n}", " : void();\n}\n\n}"),
]
# The sources that a probe runs: the first is compiled with the mutation, the others as they are.
SOURCES = {
    probes.attention: ["attention_16bit.cu", "attention_e4m3.cu", "attention_int4.cu", *ATTENTION],
    probes.attention_e4m3: ["attention_e4m3.cu", "attention_16bit.cu", "attention_int4.cu", *ATTENTION],
    probes.attention_int4: ["attention_int4.cu", "attention_16bit.cu", "attention_e4m3.cu", *ATTENTION],
    probes.prefill_hopper: [
        "sm90/attention.cu",
        "attention_16bit.cu",
        "attention_e4m3.cu",
        "attention_int4.cu",
        *ATTENTION[:-1],
    ],
    probes.matmul_dense: ["matmul_dense.cu", "sm90/matmul_dense.cu"],
    probes.matmul_dense_hopper: ["sm90/matmul_dense.cu", "matmul_dense.cu"],
    probes.matmul_w8a16: ["matmul_w8a16.cu", "sm90/matmul_w8a16.cu"],
    probes.matmul_w8a16_hopper: ["sm90/matmul_w8a16.cu", "matmul_w8a16.cu"],
    probes.matmul_w8a8: ["matmul_w8a8.cu", "sm90/matmul_w8a8.cu"],
    probes.matmul_w8a8_hopper: ["sm90/matmul_w8a8.cu", "matmul_w8a8.cu"],
    probes.norm: ["norm.cu"],
    probes.rotate_keys: ["rotate_keys.cu", "rope_kv_write.cu"],
}
MUTATIONS = [
    Mutation(
        "no barrier before the stages are filled for another item",
        "attention_kernel.cuh",
        "    __syncthreads();  // the last item's stages are free, and everyone has read which this is\n",
        "",
        probes.attention,
    ),
    Mutation(
        "no barrier after a part has come",
        "attention_kernel.cuh",
        "      cp_async_wait<kAttentionStages - 2>();\n      __syncthreads();\n",
        "      cp_async_wait<kAttentionStages - 2>();\n",
        probes.attention,
    ),
    Mutation(
        "no wait for a part",
        "attention_kernel.cuh",
        "      cp_async_wait<kAttentionStages - 2>();\n",
        "",
        probes.attention,
    ),
    Mutation(
        "a wait too short by one",
        "attention_kernel.cuh",
        "cp_async_wait<kAttentionStages - 2>()",
        "cp_async_wait<kAttentionStages - 1>()",
        probes.attention,
    ),
    Mutation(
        "a part is copied to where the last is read",
        "attention_kernel.cuh",
        "(stage > 0 ? stage - 1 : kAttentionStages - 1)",
        "stage",
        probes.attention,
    ),
    Mutation(
        "the causal edge excludes the query itself",
        "attention_kernel.cuh",
        "token <= last[row];",
        "token < last[row];",
        probes.attention,
    ),
    Mutation(
        "the window is one too wide",
        "attention_kernel.cuh",
        "position >= window ? position - window + 1 : 0;",
        "position >= window ? position - window : 0;",
        probes.attention,
    ),
    Mutation(
        "the last tile is left out",
        "attention_kernel.cuh",
        "end_tile = (item.end + kTile - 1) / kTile",
        "end_tile = item.end / kTile + (item.end < kTile)",
        probes.attention,
    ),
    Mutation(
        "two registers of a fragment are swapped",
        "attention_kernel.cuh",
        "a[2 * i + 1] = Mma<T>::pack(w[i][2], w[i][3]);",
        "a[3 - i] = Mma<T>::pack(w[i][2], w[i][3]);",
        probes.attention,
    ),
    Mutation(
        "rows are rescaled by each other's factor",
        "attention_kernel.cuh",
        "part.out[j][e] *= rescale[e / 2]",
        "part.out[j][e] *= rescale[e % 2]",
        probes.attention,
    ),
    Mutation(
        "splits begin where the sequence does, not at fixed positions",
        "attention_kernel.cuh",
        "if ((tile + 1) % kTilesASplit == 0",
        "if ((tile + 1 - first_tile) % (kTilesASplit - 1) == 0",
        probes.attention,
    ),
    Mutation(
        "a count of pieces stays where it is",
        "common.cuh",
        "static_cast<int32_t>(atomicInc(reinterpret_cast<uint32_t*>(finished), last))",
        "atomicAdd(finished, last > 0)",
        probes.attention,
    ),
    Mutation(
        "pieces are not released", "common.cuh", "  __threadfence();  // releases", "  // releases", probes.attention
    ),
    Mutation(
        "pieces are not acquired", "common.cuh", "  __threadfence();  // acquires", "  // acquires", probes.attention
    ),
    Mutation(
        "heads count in one place",
        "attention_kernel.cuh",
        "item.sequence * p.heads + item.local;",
        "item.sequence * p.heads;",
        probes.attention,
    ),
    Mutation(
        "the piece that comes last is merged first",
        "attention_kernel.cuh",
        "for (int i = 0; i < item.pieces; ++i) {",
        "for (int k = 0; k < item.pieces; ++k) {\nconst int i = (k + item.piece - item.pieces_start) % item.pieces;",
        probes.attention,
    ),
    Mutation(
        "the count of items stays where it is",
        "attention_plan.cuh",
        "== end_ - 1) *p_.counters = 0;",
        "== end_) *p_.counters = 0;",
        probes.attention,
    ),
    Mutation(
        "prefill tells of an item where the one before is read",
        "sm90/attention_copy.cuh",
        "shared_.next + count % 2;",
        "shared_.next + count % 1;",
        probes.prefill_hopper,
    ),
    Mutation(
        "whole blocks are copied from those that come before",
        "attention_copy.cuh",
        "head_of<true>((first >> shift) + block,",
        "head_of<true>((first >> shift) + block - 1,",
        probes.attention,
    ),
    Mutation(
        "the blocks of the next tokens are never looked up",
        "attention_copy.cuh",
        "      blocks_ = next_blocks_;\n",
        "",
        probes.attention,
    ),
    Mutation(
        "what is not finite in V reaches rows that do not see it",
        "attention_kernel.cuh",
        "} else if (whole) {",
        "} else if (first >= 0) {",
        probes.attention,
    ),
    Mutation(
        "the lower e4m3 numbers of a word are taken for the upper",
        "mma.cuh",
        "widen_e4m3(halves << 8)",
        "widen_e4m3(halves)",
        probes.attention_e4m3,
    ),
    Mutation(
        "the sign bit of an int4 code is not flipped",
        "mma.cuh",
        "kBias = 0x64086408u",
        "kBias = 0x64006400u",
        probes.attention_int4,
    ),
    Mutation(
        "all groups of a key have the scale of the first",
        "attention_kernel.cuh",
        "k_scale + dim / 32 * Config::kTile",
        "k_scale",
        probes.attention_int4,
    ),
    Mutation(
        "the pairs of tokens of an int4 value are swapped",
        "attention_tiles.cuh",
        "2 * g + t % 2;",
        "2 * g + (t + 1) % 2;",
        probes.attention_int4,
    ),
    Mutation(
        "a query gives nothing to its own key",
        "attention_mass.cu",
        "row >= rows.count || token > rows.last_seen(row)",
        "row >= rows.count || token >= rows.last_seen(row)",
        probes.attention_mass,
    ),
    Mutation(
        "rows are loaded while others are scored",
        "attention_mass.cu",
        "    tiles.score(scores);\n    __syncthreads();\n#pragma unroll\n    for (int r = 0; r < kRows; ++r) {\n"
        "      const int row",
        "    tiles.score(scores);\n#pragma unroll\n    for (int r = 0; r < kRows; ++r) {\n      const int row",
        probes.attention_mass,
    ),
    Mutation(
        "tokens are written where others have not been read",
        "gather_kv.cu",
        "      __syncwarp();\n",
        "",
        probes.gather_kv,
    ),
    Mutation(
        "all warps turn one key",
        "rotate_keys.cu",
        "offset = blockIdx.z * kWarps + warp;",
        "offset = blockIdx.z * kWarps;",
        probes.rotate_keys,
    ),
    Mutation(
        "prefill is told of a tile that has not landed",
        "sm90/attention_copy.cuh",
        "      cp_async_wait<1>();\n",
        "      cp_async_wait<2>();\n",
        probes.prefill_hopper,
    ),
    Mutation(
        "prefill does not fence what it has copied",
        "sm90/attention_copy.cuh",
        "    fence_proxy_async();\n    arrive_as_warp(filled);\n",
        "    arrive_as_warp(filled);\n",
        probes.prefill_hopper,
    ),
    Mutation(
        "prefill copies over a tile that is multiplied",
        "sm90/attention.cu",
        "      wgmma_wait<0>();\n      wgmma_settled(out);\n      if (!begins) free_stage();\n",
        "      if (!begins) free_stage();\n      wgmma_wait<0>();\n      wgmma_settled(out);\n",
        probes.prefill_hopper,
    ),
    Mutation(
        "prefill masks by its first row alone",
        "sm90/attention.cu",
        "(first + 1) / kTile}",
        "(last + 1) / kTile}",
        probes.prefill_hopper,
    ),
    Mutation(
        "prefill multiplies an inf that a row does not see",
        "sm90/attention.cu",
        "whole || !has_not_finite(v)",
        "true",
        probes.prefill_hopper,
    ),
    Mutation(
        "prefill begins its splits where its rows do",
        "sm90/attention.cu",
        "tile % kTilesASplit == 0;",
        "(tile - tiles.first) % kTilesASplit == 0;",
        probes.prefill_hopper,
    ),
    Mutation(
        "prefill adds to the output of the split before",
        "sm90/attention.cu",
        "i > 0 || !new_split)",
        "i >= 0 || !new_split)",
        probes.prefill_hopper,
    ),
    Mutation(
        "a wait too short by one in the pipeline",
        "matmul_kernel.cuh",
        "cp_async_wait<kStages - 2>()",
        "cp_async_wait<kStages - 1>()",
        probes.matmul_dense,
    ),
    Mutation(
        "lanes do not wait for each other",
        "matmul_kernel.cuh",
        "kAlone ? __syncwarp() : __syncthreads()",
        "kAlone ? void() : __syncthreads()",
        probes.matmul_w8a16,
    ),
    Mutation(
        "the epilogue overwrites what other warps still read",
        "matmul_kernel.cuh",
        "  __syncthreads();\n  Sum* parts = ",
        "  Sum* parts = ",
        probes.matmul_w8a16,
    ),
    Mutation(
        "the parts of K are added in an order that depends on the row",
        "matmul_kernel.cuh",
        "x += part[i * Tile::kWarpsN * kPart];",
        "x += part[(i + row) % Tile::kWarpsK * Tile::kWarpsN * kPart];",
        probes.matmul_dense,
    ),
    Mutation(
        "the last column spills over",
        "matmul_kernel.cuh",
        "if (column >= p.n) return;",
        "if (column > p.n) return;",
        probes.matmul_w8a8,
    ),
    Mutation(
        "a row is read past its end",
        "matmul_kernel.cuh",
        "(left >= kEach && ",
        "(left > 0 && ",
        probes.matmul_dense,
    ),
    Mutation(
        "columns of a packed word are mixed up",
        "matmul_ops.cuh",
        "return 4 * g + 2 * tile + half;",
        "return 4 * g + tile + 2 * half;",
        probes.matmul_w8a8,
    ),
    Mutation(
        "a full stage is not waited for",
        "sm90/matmul_kernel.cuh",
        "    wait_for(pipeline.filled + turn.stage, turn.round);\n",
        "",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "a full stage is waited for with the other parity",
        "sm90/matmul_kernel.cuh",
        "wait_for(pipeline.filled + turn.stage, turn.round)",
        "wait_for(pipeline.filled + turn.stage, turn.round + 1)",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "an empty stage is not waited for",
        "sm90/matmul_kernel.cuh",
        "if (turn.round > 0) wait_for(",
        "if (turn.round > 99) wait_for(",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "a stage is said to be empty while it is multiplied",
        "sm90/matmul_kernel.cuh",
        "pipeline.emptied + (stage == 0 ? Tile::kStages : stage) - 1",
        "pipeline.emptied + stage",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "a stage waits for the bytes of one panel too few",
        "sm90/matmul_kernel.cuh",
        "Tile::kRowBytes + Tile::kPanels * bytes",
        "Tile::kRowBytes + (Tile::kPanels - 1) * bytes",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "the last stage waits for the bytes of a whole one",
        "sm90/matmul_kernel.cuh",
        "Tile::kRowBytes + Tile::kPanels * bytes",
        "Tile::kRowBytes + Tile::kPanels * Tile::kPanelBytes",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "barriers are not shown to the copies",
        "sm90/matmul_kernel.cuh",
        "    fence_proxy_async();\n",
        "",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "weights beyond K are left as they were",
        "sm90/matmul_kernel.cuh",
        "at < Tile::kPanelBytes; at += kWarp * 16",
        "at < bytes; at += kWarp * 16",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "weights of the next half are loaded over those being multiplied",
        "sm90/matmul_kernel.cuh",
        "      wgmma_wait<1>();\n",
        "      wgmma_wait<2>();\n",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "the last product is not waited for",
        "sm90/matmul_kernel.cuh",
        "  wgmma_wait<0>();\n",
        "",
        probes.matmul_w8a8_hopper,
    ),
    Mutation("a group has no fence", "sm90/matmul_kernel.cuh", "      wgmma_fence();\n", "", probes.matmul_w8a8_hopper),
    Mutation(
        "the last stage is left out",
        "sm90/matmul_kernel.cuh",
        "pipeline, turn, stages, panel, panel_scales);\n    write_tile",
        "pipeline, turn, stages - 1, panel, panel_scales);\n    write_tile",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "a step of K begins too early",
        "sm90/matmul_kernel.cuh",
        "rows + step * 32",
        "rows + step * 16",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "lanes keep the rows that they load first",
        "sm90/matmul_ops.cuh",
        "a[2 * half] = t < 2 ? x : y;",
        "a[2 * half] = x;",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "sums overwrite those that others still read",
        "sm90/matmul_kernel.cuh",
        "    named_barrier_sync(barrier, kWarpgroup);\n  }\n}",
        "  }\n}",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "the sums of other warps are not waited for",
        "sm90/matmul_kernel.cuh",
        "    named_barrier_sync(barrier, kWarpgroup);\n#pragma unroll\n",
        "#pragma unroll\n",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "a part of K is added twice",
        "sm90/matmul_kernel.cuh",
        "for (uint32_t begin = 0; begin < stages; begin += split) {",
        "for (uint32_t begin = 0; begin < stages; begin += split) {\n      sum[0] += begin == 0 ? 0 : part[0];",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "parts of K are other than those of few rows",
        "sm90/matmul_kernel.cuh",
        "stages_of_part<Op::kInBlocks>(stages)",
        "(stages + kSplits - 2) / (kSplits - 1)",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "the zeros beyond K are not shown to the copies",
        "sm90/matmul_kernel.cuh",
        "      fence_proxy_async();  // a later",
        "      // a later",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "the pair of another lane is widened",
        "sm90/matmul_ops.cuh",
        "bool upper = t % 2 != 0",
        "bool upper = t % 2 == 0",
        probes.matmul_w8a16_hopper,
    ),
    Mutation(
        "steps of x are not where they are looked for",
        "matmul_kernel.cuh",
        "(step ^ row / 2 % 2) * 32",
        "(step ^ row % 2) * 16",
        probes.matmul_w8a16,
    ),
    Mutation(
        "rows of x are not swizzled",
        "sm90/tensor_map.cuh",
        "CU_TENSOR_MAP_SWIZZLE_128B",
        "CU_TENSOR_MAP_SWIZZLE_NONE",
        probes.matmul_w8a8_hopper,
    ),
    Mutation("groups of eight rows overlap", "sm90/wgmma.cuh", "1024 >> 4", "512 >> 4", probes.matmul_w8a8_hopper),
    Mutation(
        "the threads want more registers than they began with",
        "sm90/matmul_config.cuh",
        "kCopyRegisters = 24",
        "kCopyRegisters = 32",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "few rows: a full stage is not waited for",
        "sm90/matmul_few_rows.cuh",
        "    while (!mbarrier_try_wait_parity(ring.filled + stage, round % 2)) {\n    }\n",
        "",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "few rows: a stage is filled while lanes still read it",
        "sm90/matmul_few_rows.cuh",
        "    wait_for_others();  // the stage is free\n",
        "",
        probes.matmul_w8a16_hopper,
    ),
    Mutation(
        "few rows: a stage is filled while other warps still read it",
        "sm90/matmul_few_rows.cuh",
        "    wait_for_others();  // the stage is free\n",
        "    __syncwarp();\n",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "few rows: all warps multiply the weights of the first",
        "sm90/matmul_few_rows.cuh",
        "(2 * warp_n + g / 4) * Tile::kPanelStage",
        "g / 4 * Tile::kPanelStage",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "few rows: a stage waits for the bytes of one panel too few",
        "sm90/matmul_few_rows.cuh",
        "count * Tile::kRowBytes + Tile::kPanels * bytes",
        "count * Tile::kRowBytes + (Tile::kPanels - 1) * bytes",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "few rows: x is looked for where it was, not where the swizzle put it",
        "sm90/matmul_few_rows.cuh",
        "((2 * step + t / 2) ^ g) * 16",
        "(2 * step + t / 2) * 16",
        probes.matmul_w8a8_hopper,
    ),
    Mutation(
        "few rows: weights beyond K are left as they were",
        "sm90/matmul_few_rows.cuh",
        "at < bytes; at += kWarp * 16",
        "at < 0; at += kWarp * 16",
        probes.matmul_dense_hopper,
    ),
    Mutation(
        "few rows: the last part of K begins a stage early",
        "sm90/matmul_few_rows.cuh",
        "begin = warp_k * split;",
        "begin = warp_k * split - warp_k / (kSplits - 1);",
        probes.matmul_w8a16_hopper,
    ),
    Mutation(
        "the first part of K to be there adds them all up",
        "common.cuh",
        "return *scratch == blocks - 1;",
        "return *scratch == blocks - 4;",
        probes.matmul_gguf,
    ),
    Mutation(
        "all parts of K are multiplied by the weights of the first",
        "matmul_gguf.cu",
        "part_begin = part * split;",
        "part_begin = (kAlone ? part : 0) * split;",
        probes.matmul_gguf,
    ),
    Mutation(
        "no wait before a stage of a GGUF weight is filled again",
        "matmul_gguf.cu",
        "    wait_for_others();  // the stage is free\n",
        "",
        probes.matmul_gguf,
    ),
    Mutation(
        "the upper bits of a Q4_K scale are lost",
        "gguf_blocks.cuh",
        "scale = (low & 15u) | scale >> 6 << 4;",
        "scale = low & 15u;",
        probes.embedding,
    ),
    Mutation(
        "both halves of a Q6_K block have one scale",
        "gguf_blocks.cuh",
        "static_cast<int8_t>(byte(both, h))",
        "static_cast<int8_t>(byte(both, h * 0))",
        probes.embedding,
    ),
    Mutation(
        "both halves of a Q2_K block have one min",
        "gguf_blocks.cuh",
        "{min(0), min(1)}",
        "{min(0), min(0)}",
        probes.embedding,
    ),
    Mutation("the fifth bits of Q5_0 are lost", "gguf_blocks.cuh", "four * 0x00204081u", "four", probes.embedding),
    Mutation(
        "a code never names the upper half of a code book",
        "gguf_blocks.cuh",
        "selector >> 1 & 0x4444u",
        "selector >> 1 & 0x4440u",
        probes.embedding,
    ),
    Mutation(
        "a kernel does not wait for those before it",
        "norm.cu",
        "  begin_kernel();\n",
        "",
        probes.norm,
    ),
    Mutation(
        "no barrier before the sums of the warps are read",
        "common.cuh",
        "scratch[threadIdx.x / kWarp] = x;\n  __syncthreads();\n  x = scratch[0]",
        "scratch[threadIdx.x / kWarp] = x;\n  x = scratch[0]",
        probes.norm,
    ),
    Mutation(
        "a shuffle leaves half of the warp out", "common.cuh", "offset = kWarp / 2", "offset = kWarp / 4", probes.norm
    ),
    Mutation(
        "a tap too late", "causal_conv.cu", "input(t - kept + j, x)", "input(t - kept + j + 1, x)", probes.causal_conv
    ),
    Mutation(
        "a state with the inputs of the token before",
        "causal_conv.cu",
        "input(t + 1 - kept + j, x)",
        "input(t - kept + j, x)",
        probes.causal_conv,
    ),
    Mutation(
        "no barrier before the sums over rows are read",
        "gated_delta_rule.cu",
        "shared.of_keys[warp][lane] = sum;\n    __syncthreads();",
        "shared.of_keys[warp][lane] = sum;",
        probes.gated_delta_rule,
    ),
    Mutation(
        "no barrier behind the keys and queries",
        "gated_delta_rule.cu",
        "    __syncthreads();\n    const float decay",
        "    const float decay",
        probes.gated_delta_rule,
    ),
    Mutation(
        "columns of the next head",
        "gated_delta_rule.cu",
        "const bool stored = column < p.state_width()",
        "const bool stored = true",
        probes.gated_delta_rule,
    ),
    Mutation(
        "a norm does not wait for its warp",
        "rope_kv_write.cu",
        "* to_float(weight[i])));\n  }\n  __syncwarp();",
        "* to_float(weight[i])));\n  }",
        probes.rope_kv_write,
    ),
    Mutation("V goes where K should", "rope_kv_write.cu", "is_v ? p.v : p.k", "is_v ? p.k : p.v", probes.rope_kv_write),
    Mutation("one run too many", "copy_blocks.cu", "if (at < end) store", "if (at <= end) store", probes.copy_blocks),
    Mutation(
        "no barrier before the scratch is used again",
        "common.cuh",
        "  __syncthreads();\n  if (threadIdx.x % kWarp == 0)",
        "  if (threadIdx.x % kWarp == 0)",
        probes.token_logprobs,
    ),
]


def library(probe: Callable[[SimtOps], None], folder: Path, *changes: tuple[str, str, str]) -> Path:
    """The probe's kernels, with the first of its sources from a changed copy in `folder`."""
    csrc = folder / "csrc"
    for part in ("cuda", "pybatch"):
        shutil.copytree(compile.CSRC / part, csrc / part)
    for name, before, after in (*NARROWED, *changes):
        file = csrc / "cuda" / name
        text = file.read_text()
        assert before in text, f"{name} no longer has the lines that are to be changed: {before}"
        file.write_text(text.replace(before, after))
    changed, *others = SOURCES.get(probe, [f"{probe.__name__}.cu"])
    return compile.library([csrc / "cuda" / changed, *(compile.CSRC / "cuda" / other for other in others)])


@pytest.mark.parametrize("probe", sorted({m.probe for m in MUTATIONS}, key=lambda p: p.__name__))
def test_a_kernel_as_it_is_passes_its_probe(probe: Callable[[SimtOps], None], tmp_path: Path) -> None:
    probe(SimtOps(library(probe, tmp_path)))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_is_caught(mutation: Mutation, tmp_path: Path) -> None:
    mutated = library(mutation.probe, tmp_path, (mutation.file, mutation.before, mutation.after))
    with pytest.raises((SimtFault, AssertionError)) as caught:
        mutation.probe(SimtOps(mutated))
    print(str(caught.value).strip().partition("\n")[0])
