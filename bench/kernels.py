"""Every op on shapes of real models, as a share of what this machine can do, next to torch.

    python bench/kernels.py [--quick] [--only REGEX] [--json PATH]

The ceilings (fp32 and int8 arithmetic, reading, copying) are measured in the same process, in the same instruction
set, on the same threads, right before and after each case, since a shared machine's memory has good and bad minutes. A
case takes at least the longer of its arithmetic and its memory traffic at those ceilings; its rate is given in the one
that binds it, and its share is that least time over the time it took. Inputs rotate through more memory than the
caches hold. Matmuls and attention are replayed from a graph, one after the other, as the engine runs its decode steps;
the other ops, and torch, are called from Python. Each op is checked against torch in float64 before it is timed.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from pybatch import _C, ops
from pybatch.engine.execution.kv_cache import INT4, KvCache, KvLayout, KvShape
from pybatch.machine.facts import facts
from pybatch.model.batch import LayerCache

CACHE_BYTES = 128 << 20  # more than the last-level caches of most machines
LARGE_CACHE_BYTES = 640 << 20  # and of those with hundreds of MB, for long contexts
BLOCK = 16  # tokens in a KV block
Call = Callable[[], Tensor]


@dataclass
class Model:
    name: str
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int


MODELS = [
    Model("smollm2-135m", 576, 1536, 9, 3, 64, 49152),
    Model("llama-3.2-1b", 2048, 8192, 32, 8, 64, 128256),
    Model("llama-3-8b", 4096, 14336, 32, 8, 128, 128256),
]


@dataclass
class Case:
    name: str
    make: Callable[[int], Call]  # the i-th of the copies of the inputs -> a call of the op
    bytes: int  # read and written
    operations: int = 0
    int8: bool = False
    wanted: Call | None = None  # the result of copy 0 in float64
    tolerance: float = 1e-4
    peers: dict[str, Callable[[int], Call]] = field(default_factory=dict)
    rotation: int = 0  # copies that make one graph; 0: called from Python
    copies: bool = False  # writes as much as it reads, so that the copying ceiling is its own


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def size(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


class Copies:
    """The same tensors, enough times to be out of the caches when their turn comes again."""

    def __init__(self, *tensors: Tensor, cache_bytes: int = CACHE_BYTES) -> None:
        count = 1 + cache_bytes // size(*tensors)
        self.sets = [tensors] + [tuple(t.clone() for t in tensors) for _ in range(count - 1)]

    def __len__(self) -> int:
        return len(self.sets)

    def __getitem__(self, i: int) -> tuple[Tensor, ...]:
        return self.sets[i % len(self.sets)]


def gguf_weights(kind: str, n: int, k: int) -> tuple[Tensor, Tensor]:
    """Weights of random codes, packed; and as they are."""
    block = ops.GGUF_BLOCKS[kind]
    data = torch.randint(256, (n, k // block.weights, block.bytes), dtype=torch.uint8)
    for at in block.halves:
        data[..., at : at + 2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
    if kind == "MXFP4":
        data[..., 0] = 120
    packed = ops.pack_gguf(data.flatten(1), kind)
    return packed, ops.embedding(torch.arange(n), packed, torch.empty(n, k), n)


def matmul_weights(kind: str, n: int, k: int) -> tuple[Callable[..., Tensor], tuple[Tensor, ...], Tensor]:
    """The op, the weights that it takes, and what they stand for [n, k]."""
    if kind in ops.GGUF_BLOCKS:
        blocks, plain = gguf_weights(kind, n, k)
        return ops.matmul_gguf, (blocks,), plain
    w = rand(n, k)
    if kind.startswith("dense"):
        w = w.to(torch.bfloat16 if kind == "dense bf16" else torch.float32)
        return ops.matmul_dense, (ops.pack_dense(w),), w
    q, scale = ops.quantize_int8(w)
    return getattr(ops, f"matmul_{kind}"), (ops.pack_int8(q), scale), q * scale[:, None]


def matmuls(model: Model, quick: bool, only: str = "") -> Iterator[Case]:
    shapes = {"gate_up": (2 * model.intermediate, model.hidden), "down": (model.hidden, model.intermediate)}
    if quick:
        del shapes["down"]
    cache_bytes = CACHE_BYTES if model is MODELS[0] else LARGE_CACHE_BYTES
    for layer, (n, k) in shapes.items():
        for kind in ("dense f32", "dense bf16", "w8a16", "w8a8", *ops.GGUF_BLOCKS):
            if kind in ops.GGUF_BLOCKS and k % ops.GGUF_BLOCKS[kind].weights != 0:
                continue
            prefix = "matmul_gguf " if kind in ops.GGUF_BLOCKS else "matmul_"
            names = {
                m: f"{prefix}{kind} {model.name} {layer} M={m}" for m in ((1, 32) if quick else (1, 8, 32, 64, 512))
            }
            wanted = [m for m, name in names.items() if re.search(only, name)]
            if not wanted:  # its weights would take long to make
                continue
            op, weights, plain = matmul_weights(kind, n, k)
            int8 = kind == "w8a8" or kind in ops.GGUF_BLOCKS
            copies = Copies(*weights, cache_bytes=cache_bytes)
            peer: Copies | None = None
            if kind == "dense f32":
                peer = Copies(plain, cache_bytes=cache_bytes)
            elif kind in ("w8a16", "w8a8"):
                q, scale = ops.quantize_int8(plain)
                peer = Copies(q, scale.to(torch.bfloat16), cache_bytes=cache_bytes)
            for m in wanted:
                x, out = rand(m, k, seed=1), torch.empty(m, n)
                xb = x.to(torch.bfloat16)
                peers: dict[str, Callable[[int], Call]] = {}
                if peer is not None and kind == "dense f32":
                    peers["mm"] = lambda i, x=x, peer=peer: lambda: torch.mm(x, peer[i][0].t())
                elif peer is not None:
                    peers["_weight_int8pack_mm"] = lambda i, x=xb, peer=peer: (
                        lambda: torch._weight_int8pack_mm(x, *peer[i])
                    )
                yield Case(
                    names[m],
                    lambda i, op=op, x=x, out=out, copies=copies: lambda: op(x, *copies[i], out=out),
                    size(*weights, x, out),
                    2 * m * n * k,
                    int8,
                    lambda x=x, plain=plain: x.double() @ plain.double().t(),
                    2e-2 if int8 else 1e-4,
                    peers,
                    rotation=len(copies),
                )


@dataclass
class Mixture:
    name: str
    hidden: int
    width: int
    experts: int
    top_k: int


MIXTURE = Mixture("olmoe-1b-7b", 2048, 1024, 64, 8)
ROUTINGS = 16  # that make one graph


def experts(quick: bool, only: str = "") -> Iterator[Case]:
    """Both matmuls of a layer of experts, with tokens of random experts; memory has the weights of those chosen. Beside
    each the plain product of one expert, of as many rows as the tokens give one on average."""
    kinds = ("experts_dense bf16", "experts_w8a16", "experts_w8a8", "experts_gguf Q4_K")
    hidden, width, top_k = MIXTURE.hidden, MIXTURE.width, MIXTURE.top_k
    for stage, n, k in (("gate_up", 2 * width, hidden), ("down", hidden, width)):
        for kind in kinds:
            names = {
                tokens: f"{kind} {MIXTURE.name} {stage} {tokens} tokens x {top_k}"
                for tokens in ((1, 64) if quick else (1, 8, 64, 512))
            }
            wanted = [tokens for tokens, name in names.items() if re.search(only, name)]
            if wanted:  # its weights would take long to make
                op, stacks, rows = expert_weights(kind, n, k)
                for tokens in wanted:
                    yield expert_case(names[tokens], op, stacks, rows, tokens, gathers=stage == "gate_up")
                    yield one_expert(f"{names[tokens]}, one expert", op, stacks, rows, tokens)


def expert_weights(kind: str, n: int, k: int) -> tuple[Callable[..., Tensor], list[Tensor], Tensor]:
    """The op, the stack that it takes, and the weights [experts, n, k] as they are."""
    count = MIXTURE.experts
    if "gguf" in kind:
        packed, rows = gguf_weights("Q4_K", count * n, k)
        op, stacks = ops.matmul_gguf, [packed]
    elif "bf16" in kind:
        rows = rand(count * n, k).to(torch.bfloat16)
        op, stacks = ops.matmul_dense, [ops.pack_dense(rows)]
    else:
        q, scale = ops.quantize_int8(rand(count * n, k))
        op, stacks, rows = (
            getattr(ops, kind.replace("experts", "matmul")),
            [ops.pack_int8(q), scale],
            q * scale[:, None],
        )
    return op, [each.unflatten(0, (count, -1)) for each in stacks], rows.view(count, n, k)


def expert_case(
    name: str, op: Callable[..., Tensor], stacks: list[Tensor], weights: Tensor, tokens: int, *, gathers: bool
) -> Case:
    count, n, k = weights.shape
    routings = [ops.route_experts(rand(tokens, count, seed=i), MIXTURE.top_k) for i in range(ROUTINGS)]
    pairs, first = tokens * MIXTURE.top_k, routings[0]
    x, out = rand(tokens if gathers else pairs, k, seed=1), torch.empty(pairs if gathers else tokens, n)

    def call(i: int) -> Call:
        routing = routings[i % ROUTINGS]
        return lambda: op(x, *stacks, out=out, experts=routing.gathered() if gathers else routing.summed())

    def wanted() -> Tensor:
        rows = x[first.order.long()] if gathers else x
        of_expert = zip(rows.double().split(first.starts.diff().tolist()), weights, strict=True)
        products = torch.cat([part @ weight.double().t() for part, weight in of_expert])
        return products if gathers else (products[first.places.long()] * first.weights[..., None]).sum(1)

    memory = int(size(*stacks) * mean_used(routings) / count) + size(x, out)
    integer = op in (ops.matmul_w8a8, ops.matmul_gguf)
    return Case(name, call, memory, 2 * pairs * n * k, integer, wanted, 2e-2 if integer else 1e-4, rotation=ROUTINGS)


def one_expert(name: str, op: Callable[..., Tensor], stacks: list[Tensor], weights: Tensor, tokens: int) -> Case:
    count, n, k = weights.shape
    routings = [ops.route_experts(rand(tokens, count, seed=i), MIXTURE.top_k) for i in range(ROUTINGS)]
    rows = round(tokens * MIXTURE.top_k / mean_used(routings))
    x, out = rand(rows, k, seed=1), torch.empty(rows, n)

    def call(i: int) -> Call:
        own = [stack[i % count] for stack in stacks]
        return lambda: op(x, *own, out=out)

    integer = op in (ops.matmul_w8a8, ops.matmul_gguf)
    return Case(
        f"{name}, {rows} rows",
        call,
        size(*stacks) // count + size(x, out),
        2 * rows * n * k,
        integer,
        lambda: x.double() @ weights[0].double().t(),
        2e-2 if integer else 1e-4,
        rotation=count,
    )


def mean_used(routings: Sequence[ops.Routing]) -> float:
    """How many experts get tokens."""
    return statistics.mean(len(routing.ids.unique()) for routing in routings)


def kv_pool(
    model: Model, dtype: torch.dtype, blocks: int, cache_bytes: int = CACHE_BYTES
) -> tuple[KvCache, Tensor, Tensor]:
    """A pool as the engine has it, every layer with the same keys and values, and these in float64; of as many layers
    as it takes for the first to be out of the caches again."""
    one = KvLayout((KvShape(model.kv_heads, model.head_dim),), BLOCK, dtype)
    layout = replace(one, shapes=one.shapes * (1 + cache_bytes // (blocks * one.block_bytes)))
    cache = KvCache(layout, blocks, torch.device("cpu"))
    shape = (blocks, model.kv_heads, model.head_dim, BLOCK)
    k, v = rand(*shape, seed=1), rand(*shape, seed=2).transpose(2, 3)
    if dtype in (torch.int8, INT4):  # multiples of 1/16, which the scales of 1/16 that come of it represent
        least, most = (-127, 127) if dtype == torch.int8 else (-8, 7)
        k, v = ((x * most / 4).round().clamp(least, most) / 16 for x in (k, v))
        k[:, :, :: ops.INT4_GROUP] = v[..., :: ops.INT4_GROUP] = least / 16
    tokens, width = blocks * BLOCK, model.kv_heads * model.head_dim
    keys, values = k.permute(0, 3, 1, 2).reshape(tokens, width), v.transpose(1, 2).reshape(tokens, width)
    slots, unmoved = torch.arange(tokens), torch.empty(1, 0)
    first, *others = (layer.tensors for layer in cache.layers)
    ops.rope_kv_write(torch.empty_like(keys), keys, values, slots * 0, slots, unmoved, *first)
    for layer in others:
        for tensor, filled in zip(layer, first, strict=True):
            if tensor is not None and filled is not None:
                tensor.copy_(filled)
    return cache, *(x.to(dtype if dtype.itemsize > 1 else torch.float64).double() for x in (k, v))


def attention(model: Model, quick: bool, only: str = "") -> Iterator[Case]:
    short = [(1, 60 + 37 * i % 81) for i in range(64)]  # 60 to 140 tokens
    workloads = {"decode 8x1024": [(1, 1024)] * 8, "decode 64x100": short, "prefill 512": [(512, 512)]}
    if not quick:
        workloads |= {f"decode {n}x100": short[:n] for n in (1, 8, 32)}
    if not quick and model is MODELS[0]:
        workloads |= {"chunk of 8k": [(449, 8192)], "chunk of 8k, 63x100": [(449, 8192), *short[:63]]}
    long = {f"decode {n}x{k}k": [(1, k << 10)] * n for n, k in ((1, 8), (1, 16), (1, 32), (8, 8))}
    if not quick:
        workloads |= long
    for label, sequences in workloads.items():
        rows = sum(new for new, _ in sequences)
        q = rand(rows, model.heads * model.head_dim)
        starts = torch.tensor([0, *(new for new, _ in sequences)]).cumsum(0).to(torch.int32)
        lengths = torch.tensor([total for _, total in sequences], dtype=torch.int32)
        counts = [-(-total // BLOCK) for _, total in sequences]
        owned = torch.randperm(sum(counts), dtype=torch.int32).split(counts)
        tables = torch.nn.utils.rnn.pad_sequence(list(owned), batch_first=True)
        for dtype in (torch.float32, torch.int8, INT4) if quick else (torch.float32, torch.float16, torch.int8, INT4):
            name = f"paged_attention {model.name} {label} KV {'int4' if dtype == INT4 else str(dtype)[6:]}"
            if not re.search(only, name):  # its pool would take long to fill
                continue
            cache, *plain = kv_pool(model, dtype, sum(counts), LARGE_CACHE_BYTES if label in long else CACHE_BYTES)

            def call(i: int, cache: KvCache = cache, q: Tensor = q, batch: tuple = (tables, starts, lengths)) -> Call:
                k, v, k_scale, v_scale = cache.layers[i % len(cache.layers)].tensors
                scale = model.head_dim**-0.5
                return lambda: ops.paged_attention(q, k, v, *batch, scale, k_scale=k_scale, v_scale=v_scale)

            dense = list(dense_attention(model, sequences, q, *plain, owned))
            peer = Copies(*(t.float() for part in dense for t in part[:3]))
            masks = [mask for *_, mask in dense]

            def sdpa(tensors: Iterable[Tensor], masks: list[Tensor | None] = masks) -> Tensor:
                parts = zip(*[iter(tensors)] * 3, masks, strict=True)
                return torch.cat([attend(*part).transpose(1, 2).flatten(0, 1).flatten(1) for part in parts])

            pairs = sum(new * total - new * (new - 1) // 2 for new, total in sequences)
            token_bytes = sum(t[0].nbytes for t in cache.layers[0].tensors if t is not None) // BLOCK
            yield Case(
                name,
                call,
                token_bytes * sum(total for _, total in sequences) + size(q, q),
                4 * pairs * model.heads * model.head_dim,
                False,
                lambda sdpa=sdpa, dense=dense: sdpa(t for part in dense for t in part[:3]),
                1e-3,
                {"sdpa": lambda i, sdpa=sdpa, peer=peer: lambda: sdpa(peer[i])},
                rotation=len(cache.layers),
            )


def dense_attention(
    model: Model, sequences: list[tuple[int, int]], q: Tensor, k: Tensor, v: Tensor, owned: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor | None]]:
    """The queries, keys, values and mask that torch wants for the same; sequences of one shape in one batch."""
    queries = q.double().view(len(q), model.heads, -1).transpose(0, 1).split([new for new, _ in sequences], 1)
    shapes = sequences if len(set(sequences)) > 1 else sequences[:1]
    each = len(sequences) // len(shapes)
    for s, (new, total) in enumerate(shapes):
        mine = range(s * each, (s + 1) * each)
        keys = [k[owned[i]].permute(1, 0, 3, 2).flatten(1, 2)[:, :total] for i in mine]
        values = [v[owned[i]].transpose(0, 1).flatten(1, 2)[:, :total] for i in mine]
        mask = torch.ones(new, total, dtype=torch.bool).tril(total - new) if new > 1 else None
        yield torch.stack([queries[i] for i in mine]), torch.stack(keys), torch.stack(values), mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def small_ops(model: Model, quick: bool) -> Iterator[Case]:
    rows = 32
    x, weight = rand(rows, model.hidden), rand(model.hidden, seed=1)
    norm_copies, gated = Copies(x), Copies(rand(rows, 2 * model.intermediate))
    suffix = f"{model.name} {rows} rows"
    yield Case(
        f"rms_norm {suffix}",
        lambda i: lambda: ops.rms_norm(norm_copies[i][0], weight, 1e-5),
        size(x, x, weight),
        wanted=lambda: functional.rms_norm(x.double(), (model.hidden,), weight.double(), 1e-5),
        peers={"rms_norm": lambda i: lambda: functional.rms_norm(norm_copies[i][0], (model.hidden,), weight, 1e-5)},
    )
    yield Case(
        f"layer_norm {suffix}",
        lambda i: lambda: ops.layer_norm(norm_copies[i][0], weight, weight, 1e-5),
        size(x, x, weight, weight),
        wanted=lambda: functional.layer_norm(x.double(), (model.hidden,), weight.double(), weight.double(), 1e-5),
        peers={
            "layer_norm": lambda i: lambda: functional.layer_norm(norm_copies[i][0], (model.hidden,), weight, weight)
        },
    )
    for op, act in (
        (ops.silu_mul, functional.silu),
        (ops.gelu_tanh_mul, lambda g: functional.gelu(g, approximate="tanh")),
    ):

        def plain(x: Tensor, act: Callable[[Tensor], Tensor] = act) -> Tensor:
            gate, up = x.chunk(2, 1)
            return act(gate) * up

        yield Case(
            f"{op.__name__} {suffix}",
            lambda i, op=op: lambda: op(gated[i][0]),
            size(gated[0][0]) * 3 // 2,
            wanted=lambda plain=plain: plain(gated[0][0].double()),
            peers={"eager": lambda i, plain=plain: lambda: plain(gated[i][0])},
        )
    table, ids = rand(model.vocab // 8, model.hidden), torch.randint(0, model.vocab // 8, (64, rows))
    out = torch.empty(rows, model.hidden)
    yield Case(
        f"embedding {suffix}",
        lambda i: lambda: ops.embedding(ids[i % 64], table, out, len(table)),
        size(out, out),
        wanted=lambda: table[ids[0]].double(),
        peers={"embedding": lambda i: lambda: functional.embedding(ids[i % 64], table)},
    )
    yield from kv_ops(model, rows)
    yield from sampling(model, rows)


def kv_ops(model: Model, rows: int) -> Iterator[Case]:
    d = model.head_dim
    q, k, v = rand(rows, model.heads * d), rand(rows, model.kv_heads * d), rand(rows, model.kv_heads * d)
    positions, slots = torch.arange(rows), torch.arange(rows) * 7 * BLOCK + 3
    angles = torch.arange(rows)[:, None] * 10000 ** -(torch.arange(0, d, 2) / d)
    rotary = torch.cat([angles.cos(), angles.sin()], dim=1)
    for dtype in (torch.float32, torch.float16):
        layers = kv_pool(model, dtype, 7 * rows)[0].layers

        def write(i: int, layers: list[LayerCache] = layers) -> Call:
            layer = layers[i % len(layers)]

            def call() -> Tensor:
                ops.rope_kv_write(q.clone() if i == 0 else q, k, v, positions, slots, rotary, layer.k, layer.v)
                return layer.v[slots // BLOCK, :, slots % BLOCK].flatten(1) if i == 0 else q

            return call

        yield Case(
            f"rope_kv_write {model.name} {rows} rows KV {str(dtype)[6:]}",
            write,
            2 * size(q, k, v),
            wanted=lambda: v.double(),
            tolerance=1e-3,
        )
    pool = torch.arange(2048, dtype=torch.uint8)[:, None].repeat(1, 65536)
    pairs = torch.stack([torch.arange(1024), torch.arange(1024, 2048)], dim=1)

    def copy(i: int) -> Call:
        def call() -> Tensor:
            ops.copy_blocks(pool, pairs)
            return pool[1024:]

        return call

    if model is MODELS[0]:
        yield Case(
            "copy_blocks 1024 x 64 KiB", copy, 2 * 1024 * 65536, copies=True, wanted=lambda: pool[:1024].double()
        )
        other = torch.zeros(1024, 65536, dtype=torch.uint8)

        def swap(i: int) -> Call:
            def call() -> Tensor:
                ops.swap_blocks(pool, other, torch.stack([torch.arange(1024)] * 2, dim=1))
                return other

            return call

        peers = {"copy_": lambda i: lambda: other.copy_(pool[:1024])}
        yield Case(
            "swap_blocks 1024 x 64 KiB",
            swap,
            2 * size(other),
            copies=True,
            wanted=lambda: pool[:1024].double(),
            peers=peers,
        )


def sampling(model: Model, rows: int) -> Iterator[Case]:
    logits = Copies(rand(rows, model.vocab) * 4)
    first = logits[0][0]
    index = torch.arange(rows)
    settings = {
        "greedy": (0.0, 0, 1.0),
        "temperature": (0.8, 0, 1.0),
        "top_k 50": (0.8, 50, 1.0),
        "top_p 0.9": (0.8, 0, 0.9),
    }
    for label, (temperature, top_k, top_p) in settings.items():
        columns = (
            torch.full((rows,), temperature),
            torch.full((rows,), top_k),
            torch.full((rows,), top_p),
            torch.zeros(rows),
            index,
            index,
        )
        yield Case(
            f"sample {label} {model.name} {rows} rows",
            lambda i, columns=columns: lambda: ops.sample(logits[i][0], *columns),
            size(first),
            wanted=(lambda: first.double().argmax(1).double()) if temperature == 0 else None,
            peers={"argmax": lambda i: lambda: logits[i][0].argmax(1)}
            if temperature == 0
            else {"softmax": lambda i: lambda: torch.softmax(logits[i][0], 1)},
        )
    json = torch.zeros(rows, -(-model.vocab // 32), dtype=torch.int32)  # a grammar allows few tokens, or nearly all
    json[:, ::50] = 0x00010010
    text = torch.full_like(json, -1) - json
    for label, masks in {"few allowed": json, "most allowed": text}.items():
        columns = (torch.zeros(rows), torch.zeros_like(index), torch.ones(rows), torch.zeros(rows), index, index)
        yield Case(
            f"sample greedy, {label} {model.name} {rows} rows",
            lambda i, masks=masks, columns=columns: (
                lambda: ops.sample(logits[i][0], *columns, masks=masks, mask_rows=index)
            ),
            size(first),
        )
    yield Case(
        f"token_logprobs top 5 {model.name} {rows} rows",
        lambda i: lambda: ops.token_logprobs(logits[i][0], index, 5)[3],
        size(first),
        wanted=lambda: first.double().log_softmax(1).topk(5).values,
        peers={"log_softmax": lambda i: lambda: logits[i][0].log_softmax(1)},
    )
    history = torch.randint(0, model.vocab, (rows * 1000,))
    start, none = torch.arange(rows + 1) * 1000, torch.zeros(rows + 1, dtype=torch.int64)

    def adjust(i: int) -> Call:
        def call() -> Tensor:
            one = torch.ones(rows)
            ops.adjust_logits(
                logits[i][0], one, one * 0, one * 0, history, start, start[:-1], none[:0], torch.empty(0), none
            )
            return logits[i][0]

        return call

    yield Case(f"adjust_logits 1000 ids {model.name} {rows} rows", adjust, 72 * len(history), wanted=first.double)


def times(make: Callable[[int], Callable[[], object]], budget: float) -> list[float]:
    """Seconds of each of several calls, each on the next copy of the inputs."""
    taken: list[float] = []
    make(1)()
    end = time.perf_counter() + budget
    while len(taken) < 5 or (time.perf_counter() < end and len(taken) < 1000):
        call = make(len(taken) + 2)
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return taken


def case_times(case: Case, budget: float) -> list[float]:
    """Seconds of a call, several times: in a graph the mean of each replay."""
    if not case.rotation:
        return times(case.make, budget)
    graph = ops.CpuGraph()
    with graph:
        for i in range(case.rotation):
            case.make(i)()
    return [seconds / case.rotation for seconds in times(lambda i: graph.replay, budget)]


def check(case: Case) -> None:
    if case.wanted is None:
        return
    actual, wanted = case.make(0)().double(), case.wanted()
    error = ((actual - wanted).norm() / wanted.norm()).item()
    if not error <= case.tolerance:
        raise SystemExit(f"{case.name}: relative error {error:.2e}, expected at most {case.tolerance:.0e}")


def measure(case: Case, budget: float) -> dict:
    check(case)
    memory, compute = "copy_bytes" if case.copies else "read_bytes", "int8_ops" if case.int8 else "fp32_flops"
    before = {name: _C.measure_ceiling(name, 0.05) for name in (memory, compute)}
    taken = case_times(case, budget)
    ceilings = {name: (rate + _C.measure_ceiling(name, 0.05)) / 2 for name, rate in before.items()}
    seconds = statistics.median(taken)
    memory_time, compute_time = case.bytes / ceilings[memory], case.operations / ceilings[compute]
    amount, unit = (case.bytes, "GB/s") if memory_time >= compute_time else (case.operations, "GFLOP/s")
    return {
        "case": case.name,
        "seconds": seconds,
        "fastest": min(taken),
        "torch": {name: statistics.median(times(make, budget)) for name, make in case.peers.items()},
        "bytes": case.bytes,
        "operations": case.operations,
        "ceilings": ceilings,
        "rate": amount / seconds / 1e9,
        "unit": "GOP/s" if case.int8 and unit == "GFLOP/s" else unit,
        "share_of_ceiling": max(memory_time, compute_time) / seconds,
    }


def typical_ceilings(results: list[dict]) -> dict[str, float]:
    names = sorted({name for r in results for name in r["ceilings"]})
    return {name: statistics.median(r["ceilings"][name] for r in results if name in r["ceilings"]) for name in names}


def show(results: list[dict]) -> None:
    title = ", ".join(f"{name} {rate / 1e9:.0f} G/s" for name, rate in typical_ceilings(results).items())
    table = Table(title=f"{ops.ISA}, {torch.get_num_threads()} threads; median ceilings: {title}")
    table.add_column("case")
    for column in ("time", "rate", "of ceiling", "torch", "speed-up"):
        table.add_column(column, justify="right")
    for r in results:
        peers = ", ".join(f"{name} {t * 1e6:.0f} us" for name, t in r["torch"].items())
        speedups = ", ".join(f"{t / r['seconds']:.2f}x" for t in r["torch"].values())
        rate = f"{r['rate']:.1f} {r['unit']}"
        table.add_row(r["case"], f"{r['seconds'] * 1e6:.0f} us", rate, f"{r['share_of_ceiling']:.0%}", peers, speedups)
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model and fewer shapes; under a minute")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write the results and the facts of the machine")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    results: list[dict] = []
    with torch.inference_mode():
        for model in MODELS[:1] if args.quick else MODELS:
            for family in (partial(matmuls, only=args.only), partial(attention, only=args.only), small_ops):
                for case in family(model, args.quick):
                    if re.search(args.only, case.name):
                        print(case.name, file=sys.stderr, flush=True)
                        results.append(measure(case, 0.1 if args.quick else 0.5))
        for case in experts(args.quick, args.only):
            print(case.name, file=sys.stderr, flush=True)
            results.append(measure(case, 0.1 if args.quick else 0.5))
    show(results)
    if args.json:
        report = {"date": date.today().isoformat(), "threads": args.threads, "command": " ".join(sys.argv)}
        report |= {"ceilings": typical_ceilings(results), "machine": facts(), "results": results}
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
