"""The CUDA kernels on this GPU, next to torch, cuBLAS and (where installed) FlashInfer, against measured ceilings.

    python bench/gpu_kernels.py [--quick] [--only REGEX] [--json PATH]

Every call is replayed from a CUDA graph with a cold L2 cache; times are medians. Each result is checked against torch
in the same run. Ceilings (copying, bf16 multiplication) are measured on the same chip, in the same process. What is
predicted is the longest of a kernel's bytes and operations at the ceilings, and of its instructions, where docs/gpu.md
has counted them, at four a clock and multiprocessor.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import traceback
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import pybatch
from pybatch import ops

Call = Callable[..., Tensor]
BF16 = torch.bfloat16


@dataclass
class Case:
    name: str
    ours: Call
    bytes: int = 0  # that have to move
    operations: int = 0
    others: dict[str, Call] = field(default_factory=dict)
    wanted: Call | None = None
    tolerance: float = 2e-2
    target: tuple[str, float] | None = None  # a rival, or "copy", and the least share of its speed
    instructions: float = 0.0  # of all warps, in the loops of the machine code


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


# ---- time ----


class Timer:
    """Median seconds of a call, replayed from a graph with a cold L2 cache: it holds what was read from elsewhere, and
    nothing that waits to be written back."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.zeros(cache, dtype=torch.int32, device="cuda")

    def __call__(self, call: Callable[[], object]) -> float:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        times = []
        for _ in range(self.rounds):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            self.flush.sum()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return statistics.median(times)


CLOCK = 1.755e9  # of an H100's multiprocessors under load


def ceilings(timer: Timer) -> dict[str, float]:
    """Bytes read and written a second by a device-to-device copy, bf16 operations a second by cuBLAS, and instructions
    of warps that the multiprocessors can issue a second."""
    src = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    dst = torch.empty_like(src)
    a, b = randn(8192, 8192), randn(8192, 8192)
    return {
        "copy": 2 * src.nbytes / timer(lambda: dst.copy_(src)), "bf16": 2 * 8192**3 / timer(lambda: a @ b),
        "instructions": 4 * CLOCK * torch.cuda.get_device_properties(0).multi_processor_count,
    }  # fmt: skip


# ---- cases ----


LARGEST = {torch.int8: 127, torch.float8_e4m3fn: 448}  # the largest code of an 8-bit cache


LAYERS = 8  # whose K and V a block of the pool holds side by side, as the engine's does


def of_one_layer(blocks: Tensor) -> Tensor:
    """The same blocks, as far from each other as they lie in a pool of all layers."""
    pool = blocks.new_empty(len(blocks), 2 * LAYERS * blocks[0].numel())
    pool[:, : blocks[0].numel()] = blocks.flatten(1)
    return pool[:, : blocks[0].numel()].view(blocks.shape)


class Paged:
    """A paged KV cache of one layer with random contents, for sequences of equal length."""

    def __init__(self, sequences: int, length: int, heads: int, kv_heads: int) -> None:
        self.sequences, self.length, self.heads, self.kv_heads = sequences, length, heads, kv_heads
        self.head_dim, self.block = 128, 16
        blocks = sequences * length // self.block
        self.k = of_one_layer(randn(blocks, kv_heads, self.head_dim, self.block))
        self.v = of_one_layer(randn(blocks, kv_heads, self.block, self.head_dim))
        self.k_scale: Tensor | None = None
        self.v_scale: Tensor | None = None
        self.restored: tuple[Tensor, Tensor] | None = None  # what an int4 cache holds
        self.tables = torch.randperm(blocks, device="cuda").int().view(sequences, -1)
        self.lengths = torch.full((sequences,), length, device="cuda", dtype=torch.int32)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.k, self.v, self.k_scale, self.v_scale) if t is not None)

    def quantised(self, dtype: torch.dtype) -> Paged:
        """The same cache in 8 bits, one scale a token and head."""
        other = copy(self)

        def codes(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
            largest = LARGEST[dtype]
            scale = (x.abs().amax(dim).float() / largest).half()
            x = (x.float() / scale.unsqueeze(dim)).clamp(-largest, largest)
            return (x.round() if dtype == torch.int8 else x).to(dtype), scale

        other.k, other.k_scale = map(of_one_layer, codes(self.k, 2))
        other.v, other.v_scale = map(of_one_layer, codes(self.v, 3))
        return other

    def int4(self) -> Paged:
        """The same cache in int4."""
        other = copy(self)

        def restored(x: Tensor, dim: int) -> Tensor:
            groups = x.float().unflatten(dim, (-1, ops.INT4_GROUP))
            low, high = groups.amin(dim + 1, keepdim=True), groups.amax(dim + 1, keepdim=True)
            scale = (torch.where(high > -low, high, low) / -8).half().float()
            return ((groups / scale).round().clamp(-8, 7) * scale).flatten(dim, dim + 1)

        k, v = restored(self.k, 2), restored(self.v, 3)
        other.restored = k.to(BF16), v.to(BF16)
        blocks, groups = len(k), self.head_dim // ops.INT4_GROUP
        other.k, other.v = (
            of_one_layer(torch.empty(blocks, self.kv_heads, *block, dtype=torch.uint8, device="cuda"))
            for block in ((self.head_dim // 2, self.block), (self.block, self.head_dim // 2))
        )
        other.k_scale, other.v_scale = (
            of_one_layer(torch.empty(blocks, self.kv_heads, groups, self.block, dtype=torch.float16, device="cuda"))
            for _ in range(2)
        )
        keys, values = k.permute(0, 3, 1, 2).flatten(2).flatten(0, 1), v.transpose(1, 2).flatten(2).flatten(0, 1)
        slots = torch.arange(len(keys), device="cuda")
        ops.rope_kv_write(
            torch.zeros_like(keys), keys, values, torch.zeros_like(slots), slots, torch.zeros(1, 0, device="cuda"),
            other.k, other.v, other.k_scale, other.v_scale,
        )  # fmt: skip
        return other

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V in bfloat16 as [sequences, kv_heads, length, head_dim]."""
        if self.restored is not None:
            return self._by_sequence(*self.restored)
        k = self.k if self.k_scale is None else (self.k.float() * self.k_scale[:, :, None]).to(BF16)
        v = self.v if self.v_scale is None else (self.v.float() * self.v_scale[..., None]).to(BF16)
        return self._by_sequence(k, v)

    def _by_sequence(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        flat = (self.sequences, self.kv_heads, self.length, self.head_dim)
        tables = self.tables.long()
        k, v = k[tables].transpose(-1, -2), v[tables]  # [sequences, pages, kv_heads, block, head_dim]
        return k.transpose(1, 2).reshape(flat), v.transpose(1, 2).reshape(flat)


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend, causal: bool) -> Call:
    def call() -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return call


def rivals(**makers: Callable[[], Call]) -> dict[str, Call]:
    """Those that run here."""
    able = {}
    for name, make in makers.items():
        try:
            call = make()
            call()
        except Exception as error:  # whatever it is, ours are measured without it
            print(f"{name} does not run here: {str(error).strip().splitlines()[0]}")
            continue
        able[name.replace("_", " ")] = call
    return able


def attention_call(paged: Paged, q: Tensor, queries: int) -> Call:
    start = torch.arange(paged.sequences + 1, device="cuda", dtype=torch.int32) * queries
    counters = torch.zeros(1 + paged.sequences * paged.heads, device="cuda", dtype=torch.int32)
    out = torch.empty_like(q)
    return lambda: ops.paged_attention(
        q, paged.k, paged.v, paged.tables, start, paged.lengths, paged.head_dim**-0.5,
        k_scale=paged.k_scale, v_scale=paged.v_scale, counters=counters, out=out,
    )  # fmt: skip


DECODE_INSTRUCTIONS = {"bf16": 690, "int8": 1960, "e4m3": 2200, "int4": 2500}  # for 64 tokens of a KV head


def decode(quick: bool) -> Iterator[Case]:
    for group, sequences, length in [(4, 32, 4096), (8, 64, 8192)][: 1 if quick else 2]:
        paged = Paged(sequences, length, 8 * group, 8)
        q = randn(sequences, paged.heads * paged.head_dim)
        q4 = q.view(sequences, paged.heads, 1, paged.head_dim)
        name = f"group {group}, {sequences} x {length}"
        bf16 = attention_call(paged, q, 1)

        def exact(paged: Paged, q: Tensor = q, q4: Tensor = q4) -> Call:
            k, v = paged.dense()
            return lambda: functional.scaled_dot_product_attention(q4, k, v, enable_gqa=True).view_as(q)

        def flash(paged: Paged = paged, q4: Tensor = q4) -> Call:
            return sdpa(q4, *paged.dense(), SDPBackend.FLASH_ATTENTION, False)

        def flashinfer(paged: Paged = paged, q: Tensor = q) -> Call:
            return flashinfer_decode(paged, q.view(len(q), -1, paged.head_dim))

        others = rivals(SDPA_flash=flash, FlashInfer=flashinfer)
        tiles, counted = sequences * 8 * length / 64, DECODE_INSTRUCTIONS
        instructions, target = tiles * counted["bf16"], ("copy", 0.85)
        yield Case(f"decode {name}", bf16, paged.nbytes, 0, others, exact(paged), 2e-2, target, instructions)
        for kind, make, gain in (
            ("int8", lambda paged=paged: paged.quantised(torch.int8), 1.6),
            ("e4m3", lambda paged=paged: paged.quantised(torch.float8_e4m3fn), 1.6),
            ("int4", paged.int4, 2.2),
        ):
            small = make()
            ours = {"pybatch bf16": bf16}
            target = ("pybatch bf16", gain)
            call = attention_call(small, q, 1)
            instructions = tiles * counted[kind]
            yield Case(f"decode {kind} {name}", call, small.nbytes, 0, ours, exact(small), 2e-2, target, instructions)


def flashinfer_decode(paged: Paged, q: Tensor) -> Call:
    import flashinfer

    pages = paged.length // paged.block
    indptr = torch.arange(paged.sequences + 1, device="cuda", dtype=torch.int32) * pages
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(torch.empty(128 << 20, dtype=torch.uint8, device="cuda"))
    last = torch.full((paged.sequences,), paged.block, device="cuda", dtype=torch.int32)
    wrapper.plan(
        indptr, paged.tables.view(-1), last, paged.heads, paged.kv_heads, paged.head_dim, paged.block, q_data_type=BF16
    )
    cache = torch.stack([paged.k.transpose(2, 3), paged.v], 1).transpose(2, 3).contiguous()
    return lambda: wrapper.run(q, cache)


def prefill(quick: bool) -> Iterator[Case]:
    for sequences, length in [(4, 2048), (1, 8192)][: 1 if quick else 2]:
        paged = Paged(sequences, length, 32, 8)
        q = randn(sequences * length, paged.heads * paged.head_dim)
        k, v = paged.dense()
        q4 = q.view(sequences, length, paged.heads, paged.head_dim).transpose(1, 2)
        backends = {"SDPA_flash": SDPBackend.FLASH_ATTENTION, "SDPA_cuDNN": SDPBackend.CUDNN_ATTENTION}
        others = rivals(**{
            name: lambda backend=backend, q4=q4, k=k, v=v: sdpa(q4, k, v, backend, True)
            for name, backend in backends.items()
        })  # fmt: skip
        operations = 2 * sequences * paged.heads * length * length * paged.head_dim  # half of 4: causal

        def exact(q: Tensor = q, q4: Tensor = q4, k: Tensor = k, v: Tensor = v) -> Tensor:
            out = functional.scaled_dot_product_attention(q4, k, v, is_causal=True, enable_gqa=True)
            return out.transpose(1, 2).reshape(q.shape)

        call = attention_call(paged, q, length)
        yield Case(f"prefill {sequences} x {length}", call, 0, operations, others, exact, target=("SDPA flash", 1.0))


def invariant_rivals(x: Tensor, weight: Tensor) -> dict[str, Call]:
    """Triton's persistent product of batch_invariant_ops, whose rows do not depend on each other either."""
    if find_spec("batch_invariant_ops") is None:
        return {}

    def persistent() -> Call:
        from batch_invariant_ops.batch_invariant_ops import matmul_persistent

        return lambda: matmul_persistent(x, weight.t())

    return rivals(Triton_persistent=persistent)


def matmuls(quick: bool) -> Iterator[Case]:
    for n, k in [(6144, 4096), (28672, 4096), (4096, 14336)][: 1 if quick else 3]:
        weight = randn(n, k) * k**-0.5
        q, scale = ops.quantize_int8(weight)
        packed, dense = ops.pack_int8(q), ops.pack_dense(weight)
        restored = (q.float() * scale[:, None]).to(BF16)
        scale8 = weight.float().abs().amax(1) / 448
        codes8 = (weight.float() / scale8[:, None]).to(torch.float8_e4m3fn)
        packed8 = ops.pack_float8(codes8)
        for m in (1, 8, 32, 64, 512, 2048, 8192):
            x, out = randn(m, k), torch.empty(m, n, dtype=BF16, device="cuda")
            operations, moved = 2 * m * n * k, 2 * m * (n + k)
            cublas = {"cuBLAS bf16": lambda x=x, w=weight: functional.linear(x, w)}
            others = cublas | invariant_rivals(x, weight)

            def w8a16(x: Tensor = x, packed: Tensor = packed, scale: Tensor = scale, out: Tensor = out) -> Tensor:
                return ops.matmul_w8a16(x, packed, scale, out=out)

            def float8(x: Tensor = x, packed: Tensor = packed8, scale: Tensor = scale8, out: Tensor = out) -> Tensor:
                return ops.matmul_w8a16(x, packed, scale, out=out)

            def w8a8(
                x: Tensor = x, packed: Tensor = packed, scale: Tensor = scale, out: Tensor = out, **fused: Any
            ) -> Tensor:
                return ops.matmul_w8a8(x, packed, scale, out=out, **fused)

            def plain(x: Tensor = x, dense: Tensor = dense, out: Tensor = out) -> Tensor:
                return ops.matmul_dense(x, dense, out=out)

            def exact(x: Tensor = x, restored: Tensor = restored) -> Tensor:
                return functional.linear(x.float(), restored.float())

            def exact_float8(x: Tensor = x, codes: Tensor = codes8, scale: Tensor = scale8) -> Tensor:
                return functional.linear(x.float(), codes.float() * scale[:, None])

            def exact_dense(x: Tensor = x, weight: Tensor = weight) -> Tensor:
                return functional.linear(x.float(), weight.float())

            shape = f"{m} x {n} x {k}"
            target = ("cuBLAS bf16", 1.7) if m <= 32 else None
            yield Case(f"w8a16 {shape}", w8a16, moved + n * k, operations, cublas, exact, target=target)
            yield Case(f"float8 {shape}", float8, moved + n * k, operations, cublas, exact_float8)
            yield Case(f"dense {shape}", plain, moved + 2 * n * k, operations, others, exact_dense)
            if m <= 32:
                yield gguf(x, n)
            if m >= 512:
                x8, norm = x.to(torch.int8), torch.ones(k, dtype=BF16, device="cuda")
                others = cublas | rivals(int_mm=lambda x8=x8, q=q: lambda: torch._int_mm(x8, q.t()))
                target = ("cuBLAS bf16", 1.3)
                yield Case(f"w8a8 {shape}", w8a8, moved + n * k, operations, others, exact, 5e-2, target)

                def normed(w8a8: Call = w8a8, norm: Tensor = norm) -> Tensor:
                    return w8a8(norm=norm, norm_eps=1e-5)

                def apart(w8a8: Call = w8a8, x: Tensor = x, norm: Tensor = norm) -> Tensor:
                    return w8a8(ops.rms_norm(x, norm, 1e-5))

                name, others = f"w8a8 with norm {shape}", {"norm apart": apart}
                yield Case(name, normed, moved + n * k, operations, others, apart, 0.0)


def gguf(x: Tensor, n: int) -> Case:
    """Weights in four bits, of a GGUF file's most usual type."""
    (m, k), block = x.shape, ops.GGUF_BLOCKS["Q4_K"]
    data = torch.randint(0, 256, (n, k // block.weights, block.bytes), dtype=torch.uint8, device="cuda")
    for at in block.halves:
        data[..., at : at + 2] = torch.tensor([0.01], dtype=torch.float16, device="cuda").view(torch.uint8)
    packed, out = ops.pack_gguf(data.flatten(1), "Q4_K"), torch.empty(m, n, dtype=BF16, device="cuda")
    weight = ops.embedding(torch.arange(n, device="cuda"), packed, torch.empty(n, k, dtype=BF16, device="cuda"), n)

    def exact() -> Tensor:
        return functional.linear(x.float(), weight.float())

    cublas: dict[str, Call] = {"cuBLAS bf16": lambda: functional.linear(x, weight)}
    moved = 2 * m * (n + k) + packed.nbytes
    name = f"gguf Q4_K {m} x {n} x {k}"
    instructions = 314 / 1024 * n * k if m == 32 else 0.0
    call = lambda: ops.matmul_gguf(x, packed, out=out)  # noqa: E731
    return Case(name, call, moved, 2 * m * n * k, cublas, exact, instructions=instructions)


def copies(quick: bool) -> Iterator[Case]:
    block_bytes, count = 2 << 20, 64 if quick else 128
    pool = torch.randint(0, 255, (2 * count, block_bytes), dtype=torch.uint8, device="cuda")
    pairs = torch.randperm(2 * count, device="cuda").view(2, count).t().contiguous()
    wanted = pool.index_copy(0, pairs[:, 1], pool[pairs[:, 0]])

    def ours() -> Tensor:
        ops.copy_blocks(pool, pairs)
        return pool

    src, dst = torch.empty_like(pool[:count]), torch.empty_like(pool[:count])
    memcpy = {"cudaMemcpy": lambda: dst.copy_(src)}
    name, moved = f"copy_blocks {count} x 2 MiB", 2 * src.nbytes
    yield Case(name, ours, moved, 0, memcpy, lambda: wanted, 0.0, target=("cudaMemcpy", 0.9))


def rows(quick: bool) -> Iterator[Case]:
    """What streams rows through: bound by memory."""
    for width in (4096, 8192)[: 1 if quick else 2]:
        x, weight, residual = randn(8192, width), randn(width), torch.zeros(8192, width, device="cuda", dtype=BF16)
        out = torch.empty_like(x)

        def norm(x: Tensor = x, weight: Tensor = weight, out: Tensor = out) -> Tensor:
            return ops.rms_norm(x, weight, 1e-5, out=out)

        def norm_of_sum(x: Tensor = x, weight: Tensor = weight, out: Tensor = out, to: Tensor = residual) -> Tensor:
            return ops.rms_norm(x, weight, 1e-5, to, out)

        def norm_by_torch(x: Tensor = x, weight: Tensor = weight) -> Tensor:
            return functional.rms_norm(x, (x.shape[1],), weight, 1e-5)

        shape, torchs = f"8192 x {width}", {"torch": norm_by_torch}
        yield Case(f"rms_norm {shape}", norm, 2 * x.nbytes, 0, torchs, norm_by_torch, target=("copy", 0.85))
        yield Case(f"rms_norm with residual {shape}", norm_of_sum, 4 * x.nbytes, 0, target=("copy", 0.85))
        gates = randn(8192, 2 * width)

        def silu(gates: Tensor = gates, out: Tensor = out) -> Tensor:
            return ops.silu_mul(gates, out)

        def silu_by_torch(gates: Tensor = gates) -> Tensor:
            gate, up = gates.chunk(2, 1)
            return functional.silu(gate) * up

        torchs = {"torch": silu_by_torch}
        yield Case(f"silu_mul {shape}", silu, 3 * x.nbytes, 0, torchs, silu_by_torch, target=("copy", 0.85))


def sampling(quick: bool) -> Iterator[Case]:
    """Rows of a large vocabulary, which need to be read once."""
    rows, vocab = 64, 128256
    logits, index = randn(rows, vocab, dtype=torch.float32) * 6, torch.arange(rows, device="cuda")
    for name, temperature, top_k, top_p in [
        ("greedy", 0.0, 0, 1.0), ("no cut", 1.0, 0, 1.0), ("top_k 50", 1.0, 50, 1.0), ("top_p 0.9", 1.0, 0, 0.9),
        ("top_p 0.9 of a flat row", 6.0, 0, 0.9),
    ]:  # fmt: skip
        settings = [torch.full((rows,), float(x), device="cuda") for x in (temperature, top_p, 0.0)]
        k = torch.full((rows,), top_k, device="cuda")

        def ours(settings: list[Tensor] = settings, k: Tensor = k) -> Tensor:
            temperature, top_p, min_p = settings
            return ops.sample(logits, temperature, k, top_p, min_p, index, index)

        others: dict[str, Call] = {"topk": lambda: logits.topk(50).indices} if top_k else {}
        wanted = (lambda: logits.argmax(1)) if temperature == 0 else None
        yield Case(f"sample {name} {rows} x {vocab}", ours, logits.nbytes, 0, others, wanted, 0.0)
    for num_top in (0, 20):

        def logprobs(num_top: int = num_top) -> Tensor:
            return ops.token_logprobs(logits, index, num_top)[0]

        def exact() -> Tensor:
            return torch.log_softmax(logits, 1).gather(1, index[:, None])[:, 0]

        torchs: dict[str, Call] = {"log_softmax": exact}
        name = f"token_logprobs {num_top} {rows} x {vocab}"
        yield Case(name, logprobs, logits.nbytes, 0, torchs, exact, 1e-4)


# ---- results ----


def error_of(case: Case) -> float | None:
    """Of the result, in proportion to what is wanted."""
    if case.wanted is None:
        return None
    got, wanted = case.ours().double(), case.wanted().double()
    return ((got - wanted).norm() / wanted.norm()).item()


def measure(case: Case, timer: Timer, ceiling: dict[str, float]) -> dict:
    error = error_of(case)
    if error is not None and not error <= case.tolerance:
        return {"name": case.name, "failed": f"relative error {error:.2e}, expected at most {case.tolerance:.0e}"}
    seconds = timer(case.ours)
    others = {name: timer(call) for name, call in case.others.items()}
    result = {
        "name": case.name, "seconds": seconds, "others": others, "error": error,
        "predicted": max(case.bytes / ceiling["copy"], case.operations / ceiling["bf16"],
                         case.instructions / ceiling["instructions"]),
        "of_copy": case.bytes / seconds / ceiling["copy"], "of_bf16": case.operations / seconds / ceiling["bf16"],
    }  # fmt: skip
    if case.target is not None:
        rival, least = case.target
        reached = result["of_copy"] if rival == "copy" else others[rival] / seconds if rival in others else None
        result["target"] = {"rival": rival, "least": least, "reached": reached}
    return result


FAMILIES = {
    "decode": decode,
    "prefill": prefill,
    "sampling": sampling,
    "rows": rows,
    "copies": copies,
    "matmuls": matmuls,  # last, for they are many
}


CASE_SECONDS = 30.0  # that a case may take, and the making of its tensors
SPAWN = get_context("spawn")


def send_results(
    to: Connection, family: str, quick: bool, only: str, ceiling: dict[str, float], done: list[str]
) -> None:
    """Of a family's cases that are not done: (name, None) as one begins, (name, its result), and (None, None) at the
    end. What goes wrong in a case is its result."""
    torch.manual_seed(0)
    timer, name = Timer(11 if quick else 31), "the next case"
    try:
        for case in FAMILIES[family](quick):
            name = case.name
            if name in done or not re.search(only, name):
                continue
            to.send((name, None))
            try:
                to.send((name, measure(case, timer, ceiling)))
            except Exception:
                to.send((name, {"name": name, "failed": traceback.format_exc(limit=-4)}))
    except Exception:  # a generator that has raised is at its end
        to.send((name, {"name": f"after {name}", "failed": traceback.format_exc(limit=-4)}))
    to.send((None, None))


def results_of(family: str, quick: bool, only: str, ceiling: dict[str, float]) -> Iterator[dict]:
    """Measured in a process of its own, for after one bad access CUDA does nothing more for a process. If it ends, or a
    case does not, another goes on behind that case."""
    done: list[str] = []
    while True:
        results, to = SPAWN.Pipe(duplex=False)
        process = SPAWN.Process(target=send_results, args=(to, family, quick, only, ceiling, done), daemon=True)
        process.start()
        to.close()
        under_way = None
        try:
            while results.poll(CASE_SECONDS):
                name, result = results.recv()
                if name is None:
                    return
                under_way = name if result is None else None
                if result is None:
                    done.append(name)
                else:
                    yield result
            why = f"no result in {CASE_SECONDS:.0f} s"
        except EOFError:
            why = "its process has ended"
        finally:
            process.kill()
            process.join()
        yield {"name": under_way or family, "failed": why}
        if under_way is None:
            return


def facts() -> dict[str, str | None]:
    return {
        "chip": torch.cuda.get_device_name(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "pybatch": pybatch.__version__, "torch": torch.__version__, "cuda": torch.version.cuda,
    }  # fmt: skip


def show(results: list[dict]) -> None:
    table = Table("case", "us", "predicted", "of copy", "of bf16 peak", "others, us", "target")
    for r in results:
        if "failed" in r:
            table.add_row(r["name"], "[red]failed")
            continue
        others = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in r["others"].items())
        target = ""
        if "target" in r:
            t = r["target"]
            reached = "not measured" if t["reached"] is None else f"{t['reached']:.2f}"
            verdict = "[green]pass" if (t["reached"] or 0) >= t["least"] else "[red]MISSED"
            target = f"{verdict}[/] {reached} of {t['least']} x {t['rival']}"
        table.add_row(
            r["name"],
            f"{r['seconds'] * 1e6:.1f}",
            f"{r['predicted'] * 1e6:.1f}",
            f"{r['of_copy']:.0%}",
            f"{r['of_bf16']:.0%}",
            others,
            target,
        )
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="The CUDA kernels on this GPU.")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    arguments = parser.parse_args()
    if not ops.CUDA:
        raise SystemExit("no GPU, or pybatch is built without CUDA: see pybatch env")
    ceiling = ceilings(Timer(11))
    torch.cuda.empty_cache()  # the memory is the families' now
    results: list[dict] = []
    for family in FAMILIES:
        for result in results_of(family, arguments.quick, arguments.only, ceiling):
            results.append(result)
            if arguments.json:  # after each, lest a later one ends it all
                content = {**facts(), "ceilings": ceiling, "results": results}
                arguments.json.write_text(json.dumps(content, indent=2) + "\n")
    show(results)
    for result in results:
        if "failed" in result:
            print(f"{result['name']}: {result['failed']}")
    raise SystemExit(any("failed" in result for result in results))


if __name__ == "__main__":
    main()
