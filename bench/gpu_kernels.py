"""The CUDA kernels on this GPU, next to torch, cuBLAS and (where installed) FlashInfer, against measured ceilings.

    python bench/gpu_kernels.py [--quick] [--only REGEX] [--json PATH]

Every call is replayed from a CUDA graph with a cold L2 cache; times are medians. Each result is checked against torch
in the same run. Ceilings (copying, bf16 multiplication) are measured on the same chip, in the same process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import pybatch
from pybatch import ops

Call = Callable[[], Tensor]
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


def randn(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


# ---- time ----


class Timer:
    """Median seconds of a call, replayed from a graph with a cold L2 cache."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(4 * cache, dtype=torch.int8, device="cuda")

    def __call__(self, call: Callable[[], object]) -> float:
        stream = torch.cuda.Stream()
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
            self.flush.zero_()
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3)
        return statistics.median(times)


def ceilings(timer: Timer) -> dict[str, float]:
    """Bytes read and written a second by a device-to-device copy, and bf16 operations a second by cuBLAS."""
    src = torch.empty(1 << 30, dtype=torch.int8, device="cuda")
    dst = torch.empty_like(src)
    a, b = randn(8192, 8192), randn(8192, 8192)
    return {"copy": 2 * src.nbytes / timer(lambda: dst.copy_(src)), "bf16": 2 * 8192**3 / timer(lambda: a @ b)}


# ---- cases ----


@dataclass
class Paged:
    """A paged KV cache of one layer with random contents, for sequences of equal length."""

    sequences: int
    length: int
    heads: int
    kv_heads: int
    head_dim: int = 128
    block: int = 16

    def __post_init__(self) -> None:
        blocks = self.sequences * self.length // self.block
        self.k = randn(blocks, self.kv_heads, self.head_dim, self.block)
        self.v = randn(blocks, self.kv_heads, self.block, self.head_dim)
        self.tables = torch.randperm(blocks, device="cuda").int().view(self.sequences, -1)
        self.lengths = torch.full((self.sequences,), self.length, device="cuda", dtype=torch.int32)

    def int8(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The cache quantised, with its scales."""
        k_scale, v_scale = self.k.float().abs().amax(2) / 127, self.v.float().abs().amax(3) / 127
        k = (self.k.float() / k_scale[:, :, None]).round().to(torch.int8)
        return k, (self.v.float() / v_scale[..., None]).round().to(torch.int8), k_scale, v_scale

    def dense(self) -> tuple[Tensor, Tensor]:
        """K and V as [sequences, kv_heads, length, head_dim]."""
        shape = (self.sequences, -1, self.kv_heads, self.block, self.head_dim)
        flat = (self.sequences, self.kv_heads, self.length, self.head_dim)
        k = self.k[self.tables.long()].transpose(-1, -2).reshape(shape)
        v = self.v[self.tables.long()].reshape(shape)
        return k.transpose(1, 2).reshape(flat), v.transpose(1, 2).reshape(flat)


def sdpa(q: Tensor, k: Tensor, v: Tensor, backend: SDPBackend, causal: bool) -> Call:
    def call() -> Tensor:
        with sdpa_kernel(backend):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    return call


def rivals(calls: dict[str, Call]) -> dict[str, Call]:
    """Those that run here."""
    able = {}
    for name, call in calls.items():
        try:
            call()
        except RuntimeError:
            continue
        able[name] = call
    return able


def attention_call(paged: Paged, q: Tensor, queries: int, int8: bool = False) -> Call:
    start = torch.arange(paged.sequences + 1, device="cuda", dtype=torch.int32) * queries
    k, v, k_scale, v_scale = paged.int8() if int8 else (paged.k, paged.v, None, None)
    out = torch.empty_like(q)
    return lambda: ops.paged_attention(
        q, k, v, paged.tables, start, paged.lengths, paged.head_dim**-0.5, k_scale=k_scale, v_scale=v_scale, out=out
    )


def decode(quick: bool) -> Iterator[Case]:
    for group, sequences, length in [(4, 32, 4096), (8, 64, 8192)][: 1 if quick else 2]:
        paged = Paged(sequences, length, 8 * group, 8)
        q = randn(sequences, paged.heads * paged.head_dim)
        k, v = paged.dense()
        q4 = q.view(sequences, paged.heads, 1, paged.head_dim)
        others = rivals({"SDPA flash": sdpa(q4, k, v, SDPBackend.FLASH_ATTENTION, False)})
        if importlib.util.find_spec("flashinfer"):
            others |= rivals({"FlashInfer": flashinfer_decode(paged, q.view(sequences, -1, paged.head_dim))})

        def exact(q4: Tensor = q4, k: Tensor = k, v: Tensor = v, q: Tensor = q) -> Tensor:
            return functional.scaled_dot_product_attention(q4, k, v, enable_gqa=True).view_as(q)

        name = f"group {group}, {sequences} x {length}"
        size = paged.k.nbytes + paged.v.nbytes
        yield Case(f"decode {name}", attention_call(paged, q, 1), size, 0, others, exact, target=("copy", 0.85))
        ours = {"pybatch bf16": attention_call(paged, q, 1)}
        int8 = attention_call(paged, q, 1, int8=True)
        scales = 4 * size // (2 * paged.head_dim)
        yield Case(f"decode int8 {name}", int8, size // 2 + scales, 0, ours, exact, target=("pybatch bf16", 1.6))


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
        flash = sdpa(q4, k, v, SDPBackend.FLASH_ATTENTION, True)
        others = rivals({"SDPA flash": flash, "SDPA cuDNN": sdpa(q4, k, v, SDPBackend.CUDNN_ATTENTION, True)})
        operations = 2 * sequences * paged.heads * length * length * paged.head_dim  # half of 4: causal

        def exact(flash: Call = flash, q: Tensor = q) -> Tensor:
            return flash().transpose(1, 2).reshape(q.shape)

        call = attention_call(paged, q, length)
        yield Case(f"prefill {sequences} x {length}", call, 0, operations, others, exact, target=("SDPA flash", 1.0))


def matmuls(quick: bool) -> Iterator[Case]:
    for n, k in [(6144, 4096), (28672, 4096), (4096, 14336)][: 1 if quick else 3]:
        weight = randn(n, k) * k**-0.5
        q, scale = ops.quantize_int8(weight)
        packed, dense, q_t = ops.pack_int8(q), ops.pack_dense(weight), q.t().contiguous()
        restored = (q.float() * scale[:, None]).to(BF16)
        for m in (1, 8, 32, 64, 512, 4096):
            x, out = randn(m, k), torch.empty(m, n, dtype=BF16, device="cuda")
            operations, moved = 2 * m * n * k, 2 * m * (n + k)
            cublas = {"cuBLAS bf16": lambda x=x, w=weight: functional.linear(x, w)}

            def w8a16(x: Tensor = x, packed: Tensor = packed, scale: Tensor = scale, out: Tensor = out) -> Tensor:
                return ops.matmul_w8a16(x, packed, scale, out=out)

            def w8a8(x: Tensor = x, packed: Tensor = packed, scale: Tensor = scale, out: Tensor = out) -> Tensor:
                return ops.matmul_w8a8(x, packed, scale, out=out)

            def plain(x: Tensor = x, dense: Tensor = dense, out: Tensor = out) -> Tensor:
                return ops.matmul_dense(x, dense, out=out)

            def exact(x: Tensor = x, restored: Tensor = restored) -> Tensor:
                return functional.linear(x.float(), restored.float())

            def exact_dense(x: Tensor = x, weight: Tensor = weight) -> Tensor:
                return functional.linear(x.float(), weight.float())

            shape = f"{m} x {n} x {k}"
            target = ("cuBLAS bf16", 1.7) if m <= 32 else None
            yield Case(f"w8a16 {shape}", w8a16, moved + n * k, operations, cublas, exact, target=target)
            yield Case(f"dense {shape}", plain, moved + 2 * n * k, operations, cublas, exact_dense)
            if m >= 512:
                x8 = x.to(torch.int8)
                others = cublas | {"torch._int_mm": lambda x8=x8, q_t=q_t: torch._int_mm(x8, q_t)}
                target = ("cuBLAS bf16", 1.3)
                yield Case(f"w8a8 {shape}", w8a8, moved + n * k, operations, others, exact, 5e-2, target)


def copies(quick: bool) -> Iterator[Case]:
    block_bytes, count = 2 << 20, 64 if quick else 256
    pool = torch.randint(0, 255, (2 * count, block_bytes), dtype=torch.uint8, device="cuda")
    order = torch.randperm(2 * count, device="cuda")
    pairs = order.view(2, count).t().contiguous()

    def ours() -> Tensor:
        ops.copy_blocks(pool, pairs)
        return pool[pairs[:, 1]]

    src, dst = torch.empty_like(pool[:count]), torch.empty_like(pool[:count])
    memcpy = {"cudaMemcpy": lambda: dst.copy_(src)}
    yield Case(
        f"copy_blocks {count} x 2 MiB", lambda: ops.copy_blocks(pool, pairs) or pool, 2 * src.nbytes, 0, memcpy,
        target=("cudaMemcpy", 0.9),
    )  # fmt: skip
    assert torch.equal(ours(), pool[pairs[:, 0]])


# ---- results ----


def error_of(case: Case) -> float | None:
    if case.wanted is None:
        return None
    wanted, got = case.wanted().double(), case.ours().double()
    return ((got - wanted).norm() / wanted.norm()).item()


def measure(case: Case, timer: Timer, ceiling: dict[str, float]) -> dict:
    error = error_of(case)
    if error is not None and not error <= case.tolerance:
        raise SystemExit(f"{case.name}: relative error {error:.2e}, expected at most {case.tolerance:.0e}")
    seconds = timer(case.ours)
    others = {name: timer(call) for name, call in case.others.items()}
    result = {
        "name": case.name, "seconds": seconds, "others": others, "error": error,
        "of_copy": case.bytes / seconds / ceiling["copy"], "of_bf16": case.operations / seconds / ceiling["bf16"],
    }  # fmt: skip
    if case.target is not None:
        rival, least = case.target
        reached = result["of_copy"] if rival == "copy" else others[rival] / seconds if rival in others else None
        result["target"] = {"rival": rival, "least": least, "reached": reached}
    return result


def show(results: list[dict]) -> None:
    table = Table("case", "us", "of copy", "of bf16 peak", "others, us", "target")
    for r in results:
        others = ", ".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in r["others"].items())
        target = ""
        if "target" in r and r["target"]["reached"] is not None:
            t = r["target"]
            colour = "green" if t["reached"] >= t["least"] else "red"
            target = f"[{colour}]{t['reached']:.2f} of {t['least']} x {t['rival']}"
        table.add_row(
            r["name"], f"{r['seconds'] * 1e6:.1f}", f"{r['of_copy']:.0%}", f"{r['of_bf16']:.0%}", others, target
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="The CUDA kernels on this GPU.")
    parser.add_argument("--quick", action="store_true", help="fewer shapes and rounds")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there")
    arguments = parser.parse_args()
    if not ops.CUDA:
        raise SystemExit("no GPU, or pybatch is built without CUDA: see pybatch env")
    torch.manual_seed(0)
    timer = Timer(11 if arguments.quick else 31)
    ceiling = ceilings(timer)
    results = [
        measure(case, timer, ceiling)
        for cases in (decode, prefill, matmuls, copies)
        for case in cases(arguments.quick)
        if re.search(arguments.only, case.name)
    ]
    show(results)
    if arguments.json:
        facts = {
            "chip": torch.cuda.get_device_name(), "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "pybatch": pybatch.__version__, "torch": torch.__version__, "cuda": torch.version.cuda,
        }  # fmt: skip
        arguments.json.write_text(json.dumps({**facts, "ceilings": ceiling, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
