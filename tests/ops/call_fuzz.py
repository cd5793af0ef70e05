"""Random calls of every op, legal and not: ``call_fuzz.py FILE CALLS [FIRST_SEED]``. FILE holds the seed of the call
that is running.

Each tensor lies against a page that may not be touched, at its front or its back. A call either raises an error that
names an argument and has written nothing, or writes no byte but those of the elements of the tensors it is to write.
Some calls are recorded in a graph, and replayed after values have changed.
"""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import random
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from ops.low_rank import random_adapters
from torch import Tensor

from pybatch import ops

Arguments = dict[str, Any]
PAGE = mmap.PAGESIZE
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
DTYPES = (*FLOATS, torch.float64, torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool, torch.float8_e4m3fn)
INTEGERS = (-(2**63), -(2**31), -1, 0, 1, 7, 2**31 - 1, 2**31, 2**32, 2**63 - 1)
NUMBERS = (float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e-45, 1e-300, 3e38, 1e39)
protect = ctypes.CDLL(None, use_errno=True).mprotect


class Calls:
    """Legal arguments of each op, of random types and sizes."""

    def __init__(self, r: random.Random) -> None:
        self.r = r
        self.dtype = r.choice(FLOATS)

    def size(self) -> int:
        return self.r.choice((0, 1, 1, 2, 3, 5, 8, 16, 17, 33, 70))

    def maybe(self, make: Callable[[], Tensor]) -> Tensor | None:
        return make() if self.r.random() < 0.5 else None

    def floats(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape).to(dtype or self.dtype)

    def rows(self, rows: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """Now and then with a gap behind each row."""
        return self.floats(rows, width + self.r.choice((0, 0, 3)), dtype=dtype)[:, :width]

    def ids(self, count: int, limit: int) -> Tensor:
        return torch.randint(max(limit, 1), (count,))

    def starts(self, rows: int, total: int) -> Tensor:
        inner = sorted(self.r.randint(0, total) for _ in range(rows - 1))
        return torch.tensor([0, *inner, total] if rows else [0])

    def norm(self) -> Arguments:
        rows, width = self.size(), self.size()
        return {
            "x": self.rows(rows, width),
            "weight": self.floats(width),
            "bias": self.maybe(lambda: self.floats(width)),
            "eps": 1e-5,
            "residual": self.maybe(lambda: self.rows(rows, width)),
            "out": self.rows(rows, width),
        }

    def add_normed(self) -> Arguments:
        made = self.norm()
        numbers = {"eps": 1e-5, "factor": 0.5, "scale": 2.0}
        return {"x": made["x"], "weight": made["bias"], **numbers, "residual": made["out"]}

    def gated(self) -> Arguments:
        rows, width = self.size(), self.size()
        return {"x": self.rows(rows, 2 * width), "out": self.rows(rows, width)}

    def plain(self) -> Arguments:
        rows, width = self.size(), self.size()
        return {"x": self.rows(rows, width), "out": self.rows(rows, width)}

    def sigmoid_mul(self) -> Arguments:
        rows, width = self.size(), self.size()
        return {name: self.rows(rows, width) for name in ("x", "gate", "out")}

    def gated_rms_norm(self) -> Arguments:
        rows, heads, width = self.size(), self.r.randint(0, 3), self.r.choice((1, 5, 16, 40))
        both = {name: self.rows(rows, heads * width) for name in ("x", "gate", "out")}
        return both | {"weight": self.floats(width), "eps": 1e-5}

    def states(self, sequences: int, *slot: int, dtype: torch.dtype) -> Arguments:
        """Layers of one pool; the tokens of the sequences too, which a call takes no argument for."""
        slots = sequences + self.r.randint(0, 3)
        order = torch.randperm(slots, dtype=torch.int32) - self.r.randrange(2)
        lengths = [self.r.randint(1, 5) for _ in range(sequences)]
        return {
            "state": torch.randn(slots, 2, *slot).to(dtype)[:, self.r.randrange(2)],
            "query_start": torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            "source": torch.tensor([self.r.choice((-1, *order[sequences:])) for _ in lengths], dtype=torch.int32),
            "destination": order[:sequences],
        }

    def causal_conv(self) -> Arguments:
        channels, taps = self.size(), self.r.randint(2, 8)
        batch = self.states(self.r.randint(0, 4), taps - 1, channels, dtype=self.dtype)
        tokens = int(batch["query_start"][-1])
        x, out = (self.rows(tokens, channels) for _ in range(2))
        return {"x": x, "weight": self.floats(taps, channels), **batch, "out": out}

    def gated_delta_rule(self) -> Arguments:
        key_heads, key_dim, value_dim = self.r.randint(1, 2), self.r.choice((1, 8, 17, 128)), self.r.choice((1, 16, 70))
        heads = key_heads * self.r.randint(1, 2)
        slot = heads, key_dim, ops.state_width(value_dim)
        batch = self.states(self.r.randint(0, 3), *slot, dtype=torch.float32)
        tokens = int(batch["query_start"][-1])
        return {
            "qkv": self.rows(tokens, 2 * key_heads * key_dim + heads * value_dim),
            "a": self.rows(tokens, heads),
            "b": self.rows(tokens, heads),
            "rate": torch.rand(heads),
            "dt_bias": torch.randn(heads),
            **batch,
            "out": self.rows(tokens, heads * value_dim),
        }

    def dense(self, n: int, k: int) -> Arguments:
        return {"weight": ops.pack_dense(self.floats(n, k, dtype=self.r.choice(FLOATS)))}

    def int8(self, n: int, k: int) -> Arguments:
        packed = torch.zeros(-(-n // 16), -(-k // 4) + 1, 16, 4, dtype=torch.int8)
        if n * k:
            packed = ops.pack_int8(torch.randint(-127, 128, (n, k), dtype=torch.int8))
        return {"weight": packed, "scale": torch.rand(n)}

    def eight_bits(self, n: int, k: int) -> Arguments:
        """int8, float8, or float8 in blocks."""
        made = self.int8(n, k)
        shape = self.r.choice((made["weight"].shape, ops.packed_float8_blocks_shape(n, k)))
        float8 = torch.randint(-128, 128, shape, dtype=torch.int8).view(torch.float8_e4m3fn)
        return made if self.r.random() < 0.5 else made | {"weight": float8}

    def gguf(self, n: int, k: int) -> Arguments:
        kind = self.r.choice([kind for kind, block in ops.GGUF_BLOCKS.items() if k % block.weights == 0])
        block = ops.GGUF_BLOCKS[kind]
        packed = torch.zeros(ops.packed_gguf_shape(n, k, kind), dtype=torch.uint8)
        return {"weight": packed.random_(256).view(block.dtype)}

    def matmul(self, weights: Callable[[int, int], Arguments]) -> Arguments:
        m, width, epilogue = self.size(), self.size(), self.r.randrange(4)
        k = self.r.choice((0, 32, 256)) if weights == self.gguf else self.size()
        n = -(-width // 16) * 32 if epilogue >= 2 else width
        return {
            "x": self.rows(m, k),
            **weights(n, k),
            "bias": self.maybe(lambda: self.floats(n, dtype=self.r.choice(FLOATS))),
            "norm": self.maybe(lambda: self.floats(k)),
            "norm_eps": 1e-5,
            "epilogue": epilogue,
            "out": self.rows(m, width, self.r.choice(FLOATS)),
        }

    def experts(self, weights: Callable[[int, int], Arguments]) -> Arguments:
        """A matmul over experts: of gathered rows, or summed."""
        count, top_k, tokens = self.r.randint(1, 5), self.r.randint(1, 3), self.size()
        base = self.matmul(weights)
        base["epilogue"] %= 4 if (gathers := self.r.random() < 0.5) else 2
        k, width, rows = base["x"].shape[1], base["out"].shape[1], tokens * top_k
        n = -(-width // 16) * 32 if base["epilogue"] >= 2 else width
        of_experts = [weights(n, k) for _ in range(count)]
        stacks = {
            key: torch.stack([each[key].to(of_experts[0][key].dtype) for each in of_experts])
            for key in of_experts[0]
            if all(each[key].shape == of_experts[0][key].shape for each in of_experts)
        }
        order = torch.randperm(rows).int()
        return base | stacks | {
            "x": self.rows(tokens if gathers else rows, k),
            "bias": self.maybe(lambda: self.floats(count, n)),
            "starts": self.starts(count, rows).int(),
            "tokens": order // top_k if gathers else None,
            "places": None if gathers else order.view(tokens, top_k),
            "weights": None if gathers else torch.rand(tokens, top_k),
            "out": self.rows(rows if gathers else tokens, width, self.r.choice(FLOATS)),
        }  # fmt: skip

    def add_lora(self) -> Arguments:
        gated, rows, k = self.r.random() < 0.3, self.size(), self.r.choice((1, 5, 40, 1100))
        widths = (
            [self.r.choice((1, 16, 40))] * 2 if gated else [self.r.randint(1, 40) for _ in range(self.r.randint(1, 3))]
        )
        adapters = random_adapters(widths, k, [self.r.choice((0, 1, 20)) for _ in range(self.r.randint(1, 3))],
                                   dtype=self.r.choice(FLOATS), gated=gated)  # fmt: skip
        columns = -(-widths[0] // 16) * 32 if gated else sum(widths)
        dtype = self.r.choice(FLOATS)
        return {
            "x": self.rows(rows, k),
            "slots": torch.randint(-1, len(adapters.matrices), (rows,), dtype=torch.int32),
            **adapters.packed._asdict(),
            "epilogue": self.r.choice((2, 3)) if gated else 0,
            "product": self.rows(rows, columns, dtype),
            "out": self.rows(rows, widths[0], dtype) if gated else None,
        }

    def route_experts(self) -> Arguments:
        tokens, groups, size = self.size(), self.r.choice((1, 1, 2, 4)), self.r.choice((1, 3, 8, 20))
        experts, top_groups = groups * size, self.r.randint(1, groups)
        routing = ops.Routing.empty(tokens, experts, self.r.randint(1, min(size * top_groups, 9)))
        return {
            "logits": self.rows(tokens, experts, torch.float32),
            "bias": self.maybe(lambda: torch.randn(experts)),
            "expert_scale": self.maybe(lambda: torch.randn(experts)),
            "scoring": self.r.randrange(3),
            "groups": groups,
            "top_groups": top_groups,
            "group_best": self.r.randint(1, min(size, 3)),
            "normalize": self.r.random() < 0.5,
            "scale": 2.5,
            **{name: tensor.zero_() for name, tensor in routing._asdict().items()},
        }

    def embedding(self) -> Arguments:
        vocab, kind = self.r.randint(1, 40), self.r.randrange(4)
        width = self.r.choice((32, 256)) if kind == 3 else self.size()
        tables = (lambda n, k: {"weight": self.floats(n, k)}, self.dense, self.eight_bits, self.gguf)
        made: Arguments = tables[kind](vocab, width)
        ids = self.ids(self.size(), vocab)
        table = {"table": made["weight"], "scale": made.get("scale"), "vocab": vocab, "multiplier": 2.5}
        return {"ids": ids, **table, "out": self.rows(len(ids), width, self.r.choice(FLOATS))}

    def cache(self) -> Arguments:
        """Layers of one pool or tensors of their own."""
        blocks, heads = self.r.randint(0, 6), self.r.randint(1, 3)
        depth, block_size = self.r.choice((8, 16, 24, 64)), self.r.choice((8, 16, 32, 64))
        dtype = self.r.choice((*FLOATS, torch.int8, torch.uint8))
        width, groups = depth, []
        if dtype == torch.uint8:  # int4
            width, groups = depth // 2, [-(-depth // ops.INT4_GROUP)]
        k, v = torch.randn(blocks, 2, heads, width, block_size), torch.randn(blocks, 2, heads, block_size, width)
        layer = self.r.choice((slice(0, 1), slice(1, 2)))
        k, v = ((t * 20).to(dtype)[:, layer].squeeze(1) for t in (k, v))
        scales = [
            torch.rand(blocks, heads, *groups, block_size).half() if dtype.itemsize == 1 else None for _ in range(2)
        ]
        return {"k_cache": k, "v_cache": v, "k_scale": scales[0], "v_scale": scales[1]}

    def rope_kv_write(self) -> Arguments:
        cache = self.cache()
        blocks, kv_heads, depth, block_size = extents(cache["k_cache"])
        tokens, most = self.r.randint(0, 6), self.r.randint(1, 20)
        heads = kv_heads * self.r.randint(1, 3)
        slots = torch.randperm(blocks * block_size + 8)[:tokens] - 8
        return {
            "q": self.rows(tokens, heads * depth),
            "k": self.rows(tokens, kv_heads * depth),
            "v": self.rows(tokens, kv_heads * depth),
            "positions": self.ids(tokens, most),
            "slots": slots,
            "rotary": torch.randn(most, self.r.choice((0, 2, depth // 2, depth))),
            "q_norm": self.maybe(lambda: self.floats(heads, depth)),
            "k_norm": self.maybe(lambda: self.floats(depth)),
            "v_norm": self.maybe(lambda: self.floats(depth)),
            "norm_eps": 1e-6,
            "layer_norm": self.r.random() < 0.5,
            "norm_last": self.r.random() < 0.5,
            "query_scale": self.maybe(lambda: torch.randn(most)),
            "interleaved": self.r.random() < 0.5,
            **cache,
            "key_divisor": self.maybe(lambda: torch.randint(-3, 4, (kv_heads, depth)).exp2()),
            "key_offset": self.maybe(lambda: torch.randn(kv_heads, depth)),
        }

    def attention_batch(self, blocks: int, block_size: int) -> Arguments:
        sequences, columns = self.r.randint(0, 4), self.r.randint(0, 40) if blocks else 0
        lengths = [self.r.randint(0, columns * block_size) for _ in range(sequences)]
        queries = [self.r.randint(0, min(length, 60)) for length in lengths]
        return {
            "block_tables": torch.randint(max(blocks, 1), (sequences, columns), dtype=torch.int32),
            "query_start": torch.tensor([0, *queries], dtype=torch.int32).cumsum(0, dtype=torch.int32),
            "seq_lens": torch.tensor(lengths, dtype=torch.int32),
            "scale": 0.2,
        }

    def latent_cache(self) -> Tensor:
        blocks, block_size, width = self.r.randint(0, 6), self.r.choice((8, 16, 32, 64)), self.r.choice((16, 32, 80))
        return torch.randn(blocks, 2, block_size, width).to(self.r.choice(FLOATS))[:, 1]

    def latent_write(self) -> Arguments:
        cache = self.latent_cache()
        blocks, block_size, width = cache.shape
        rotary_dim, tokens, heads = self.r.choice((0, 2, 8)), self.r.randint(0, 6), self.r.randint(1, 3)
        latent, most = self.r.randint(1, width - rotary_dim), self.r.randint(1, 20)
        return {
            "q": self.rows(tokens, heads * (rotary_dim + self.r.randint(0, 20))),
            "kv": self.rows(tokens, latent + rotary_dim),
            "norm": self.floats(latent),
            "norm_eps": 1e-6,
            "positions": self.ids(tokens, most),
            "slots": torch.randperm(blocks * block_size + 8)[:tokens] - 8,
            "rotary": torch.randn(most, rotary_dim),
            "interleaved": self.r.random() < 0.5,
            "cache": cache,
            "out": self.rows(tokens, heads * width),
        }

    def latent_attention(self) -> Arguments:
        cache = self.latent_cache()
        blocks, block_size, width = cache.shape
        heads, batch = self.r.randint(1, 9), self.attention_batch(blocks, block_size)
        tokens = int(batch["query_start"][-1])
        out = self.rows(tokens, heads * self.r.randint(1, width))
        return {"q": self.rows(tokens, heads * width), "cache": cache, **batch, "out": out}

    def paged_attention(self) -> Arguments:
        cache = self.cache()
        blocks, kv_heads, depth, block_size = extents(cache["k_cache"])
        heads = kv_heads * self.r.choice((1, 2, 5))
        batch = self.attention_batch(blocks, block_size)
        tokens = int(batch["query_start"][-1])
        return {
            "q": self.rows(tokens, heads * depth),
            **cache,
            **batch,
            "window": self.r.choice((0, 0, 1, 9, 2**62)),
            "soft_cap": self.r.choice((0.0, 5.0)),
            "sinks": self.maybe(lambda: torch.randn(heads)),
            "counters": self.maybe(lambda: torch.zeros(1 + len(batch["seq_lens"]) * heads, dtype=torch.int32)),
            "out": self.rows(tokens, heads * depth),
        }

    def rotate_keys(self) -> Arguments:
        cache = self.cache()
        blocks, heads, depth, _ = extents(cache["k_cache"])
        chosen = torch.randperm(blocks)[: self.r.randint(0, 3)]
        return {
            **cache,
            "blocks": chosen,
            "rotary": torch.randn(len(chosen), self.r.choice((0, 2, depth // 2, depth))),
            "key_offset": self.maybe(lambda: torch.randn(heads, depth)),
        }

    def gather_kv(self) -> Arguments:
        cache = self.cache()
        blocks, heads, _, block_size = cache["k_cache"].shape
        order = torch.randperm(blocks, dtype=torch.int32)
        source, free = order[: blocks // 2], order[blocks // 2 :]
        kept = self.r.randint(0, block_size * min(len(source), len(free)))
        indices = torch.randint(max(1, len(source) * block_size), (heads, kept), dtype=torch.int32)
        destination = free[: -(-kept // block_size)].clone()
        if self.r.random() < 0.5:  # some of the blocks in place
            indices = torch.arange(kept, dtype=torch.int32).expand(heads, -1).contiguous()
            stays = torch.rand(len(destination)) < 0.5
            destination[stays] = source[: len(destination)][stays]
        return {**cache, "source": source, "indices": indices, "destination": destination}

    def attention_mass(self) -> Arguments:
        batch = self.paged_attention()
        for name in ("window", "soft_cap", "sinks", "counters", "out"):
            del batch[name]
        starts = batch["query_start"].tolist()
        count = len(starts) - 1
        longest = int(max([0, *batch["seq_lens"].tolist()]))
        return {
            **batch,
            "first": torch.tensor([self.r.randint(*pair) for pair in pairwise(starts)], dtype=torch.int32),
            "sources": torch.tensor([self.r.choice((-1, count + s)) for s in range(count)], dtype=torch.int32),
            "rows": torch.randperm(count, dtype=torch.int32),
            "mass": torch.rand(2 * count, batch["k_cache"].shape[1], -(-longest // 16) * 16),
        }

    def pool(self, blocks: int, width: int) -> Tensor:
        return torch.randint(256, (blocks, width), dtype=torch.uint8)

    def copy_blocks(self) -> Arguments:
        blocks = self.r.randint(2, 8)
        half = blocks // 2
        pairs = torch.stack([self.ids(half, half), torch.randperm(blocks - half)[:half] + half], 1)
        return {"pool": self.pool(blocks, self.size()), "pairs": pairs}

    def swap_blocks(self) -> Arguments:
        width, src, dst = self.size(), self.r.randint(1, 5), self.r.randint(1, 5)
        pairs = torch.stack([self.ids(dst, src), torch.randperm(dst)], 1)
        return {"src": self.pool(src, width), "dst": self.pool(dst, width), "pairs": pairs}

    def logits(self) -> Tensor:
        return self.rows(self.size(), self.r.choice((1, 5, 16, 300, 2000)), torch.float32)

    def scale_logits(self) -> Arguments:
        return {"logits": self.logits(), "scale": 0.5, "soft_cap": self.r.choice((0.0, 3.0))}

    def adjust_logits(self) -> Arguments:
        logits = self.logits()
        rows, vocab = logits.shape
        history, biases = (self.size() if rows else 0 for _ in range(2))
        starts = self.starts(rows, history)
        return {
            "logits": logits,
            **{name: torch.rand(rows) + 0.5 for name in ("repetition", "presence", "frequency")},
            "history": self.ids(history, vocab),
            "history_start": starts,
            "output_start": torch.tensor([self.r.randint(*pair) for pair in pairwise(starts.tolist())]).long(),
            "bias_ids": self.ids(biases, vocab),
            "bias_values": torch.randn(biases),
            "bias_start": self.starts(rows, biases),
        }

    def sample(self) -> Arguments:
        logits = self.logits()
        n, vocab = logits.shape
        masks = self.r.choice((0, 1, 3))
        return {
            "logits": logits,
            "temperature": torch.rand(n) * self.r.choice((0, 1)),
            "top_k": torch.randint(-1, 50, (n,)),
            "top_p": 1 - torch.rand(n),
            "min_p": torch.rand(n),
            "seeds": torch.randint(-(2**63), 2**63 - 1, (n,)),
            "positions": torch.randint(2**63 - 1, (n,)),
            "masks": torch.randint(-(2**31), 2**31, (masks, -(-vocab // 32)), dtype=torch.int32) if masks else None,
            "mask_rows": torch.randint(-1, masks, (n,)) if masks else None,
            "out": torch.zeros(n, dtype=torch.int64),
        }

    def token_logprobs(self) -> Arguments:
        logits = self.logits()
        rows, vocab = logits.shape
        top = self.r.choice((0, 1, min(20, vocab), vocab))
        return {
            "logits": logits,
            "tokens": self.ids(rows, vocab),
            "logprob": torch.zeros(rows),
            "rank": torch.zeros(rows, dtype=torch.int64),
            "top_ids": torch.zeros(rows, top, dtype=torch.int64),
            "top_logprobs": torch.zeros(rows, top),
        }

    def make(self, name: str) -> Arguments:
        makers: dict[str, Callable[[], Arguments]] = {
            "rms_norm": self.norm,
            "layer_norm": self.norm,
            "gelu": self.plain,
            "gelu_tanh": self.plain,
            "relu2": self.plain,
            "silu_mul": self.gated,
            "gelu_tanh_mul": self.gated,
            "gelu_tanh_gate": self.sigmoid_mul,
            "xielu": lambda: self.plain() | {"alpha_p": 0.8, "alpha_n": 1.1, "beta": 0.5, "eps": -1e-6},
            "clamped_swiglu": lambda: self.gated() | {"alpha": 1.702, "limit": 7.0},
            "matmul_dense": lambda: self.matmul(self.dense),
            "matmul_w8a16": lambda: self.matmul(self.eight_bits),
            "matmul_w8a8": lambda: self.matmul(self.int8),
            "matmul_gguf": lambda: self.matmul(self.gguf),
            "experts_dense": lambda: self.experts(self.dense),
            "experts_w8a16": lambda: self.experts(self.eight_bits),
            "experts_w8a8": lambda: self.experts(self.int8),
            "experts_gguf": lambda: self.experts(self.gguf),
        }
        return makers[name]() if name in makers else getattr(self, name)()


def extents(k_cache: Tensor) -> tuple[int, int, int, int]:
    """Blocks, heads, head dimension, tokens in a block."""
    blocks, heads, width, size = k_cache.shape
    return blocks, heads, width * (2 if k_cache.dtype == torch.uint8 else 1), size


def spoil_values(r: random.Random, t: Tensor) -> Tensor:
    """Puts one value into it that may be illegal."""
    if t.numel() == 0 or t.is_meta:
        return t
    element = t
    while element.dim():
        element = element[r.randrange(len(element))]
    if t.is_floating_point():
        element.copy_(torch.tensor(r.choice(NUMBERS), dtype=torch.float64))
    else:
        element.copy_(torch.tensor(r.choice((*INTEGERS, r.randrange(40)))))
    return t


def spoil_tensor(r: random.Random, t: Tensor) -> Tensor | None:
    """Another tensor in place of this: of another shape, type, layout, device or storage, or with other values."""
    dim = r.randrange(t.dim()) if t.dim() else 0
    overlapping = tuple(r.choice((0, 1, s)) for s in t.stride())
    variants: tuple[Callable[[], Tensor | None], ...] = (
        lambda: spoil_values(r, t),
        lambda: spoil_values(r, spoil_values(r, t)),
        lambda: t.narrow(dim, 0, r.randint(0, t.shape[dim])),
        lambda: torch.cat([t, t.narrow(dim, 0, min(1, t.shape[dim]))], dim),
        lambda: t.unsqueeze(r.randint(0, t.dim())),
        lambda: t.flatten(),
        lambda: t.to(r.choice(DTYPES)),
        lambda: t.transpose(0, dim),
        lambda: t.as_strided(t.shape, overlapping),
        lambda: torch.zeros([r.choice((0, 1, 8)) for _ in t.shape], dtype=t.dtype),
        lambda: torch.empty(2**40, 0, dtype=t.dtype),
        lambda: torch.empty(0, 2**40, dtype=t.dtype),
        lambda: torch.empty(2**31, 0, 8, 8, dtype=t.dtype),
        lambda: t.to("meta"),
        lambda: None,
    )
    return r.choice(variants)()


def cut(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(t.untyped_storage().nbytes() // 2)
    return t


class Guarded:
    """A copy of a tensor, strides and all, against a page that may not be touched."""

    def __init__(self, r: random.Random, t: Tensor) -> None:
        elements = 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
        size = elements * t.dtype.itemsize
        room = -(-size // PAGE) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        whole = torch.frombuffer(memory, dtype=torch.uint8)
        for guard in (0, room + PAGE):
            assert protect(ctypes.c_void_p(whole.data_ptr() + guard), ctypes.c_size_t(PAGE), 0) == 0
        self.memory = whole[PAGE : PAGE + room]
        self.memory.fill_(0xA5)
        begin = r.choice((0, (room - size) // 64 * 64))  # packed weights must lie so
        elements_at = (PAGE + begin) // t.dtype.itemsize
        whole.view(t.dtype)[elements_at : elements_at + elements] = t.as_strided((elements,), (1,))
        self.tensor = whole.view(t.dtype).as_strided(t.shape, t.stride(), elements_at)
        mine = np.zeros(room // t.dtype.itemsize, bool)  # elements that are the tensor's, without the gaps between rows
        as_strided(mine[begin // t.dtype.itemsize :], t.shape, t.stride())[...] = True
        self.mine = torch.from_numpy(mine.repeat(t.dtype.itemsize))
        self.before = self.memory.clone()

    def changed(self, may_write: bool) -> bool:
        differs = self.memory != self.before
        return bool((differs & ~self.mine if may_write else differs).any())


def is_plain(value: object) -> bool:
    """Whether a tensor can be copied to guarded memory."""
    return isinstance(value, Tensor) and value.device.type == "cpu" and value.numel() > 0


def fuzz(seed: int, names: list[str]) -> None:
    r = random.Random(seed)
    torch.manual_seed(seed)
    name = r.choice(names)
    op = getattr(torch.ops.pybatch, name).default
    arguments = Calls(r).make(name)
    parameters = {argument.name: argument for argument in op._schema.arguments}
    arguments = {key: arguments[key] for key in parameters}
    for _ in range(r.choice((0, 0, 1, 1, 2))):
        key = r.choice(list(parameters))
        value = arguments[key]
        if isinstance(value, Tensor):
            arguments[key] = spoil_tensor(r, value)
        elif isinstance(value, float):
            arguments[key] = r.choice(NUMBERS)
        elif isinstance(value, int):
            arguments[key] = r.choice((*INTEGERS, 2**63, -(2**70)))
    guarded = {key: Guarded(r, value) for key, value in arguments.items() if is_plain(value)}
    arguments |= {key: guard.tensor for key, guard in guarded.items()}
    if guarded and r.random() < 0.1:  # two arguments in one place
        a, b = r.choice(list(guarded)), r.choice(list(guarded))
        if guarded[a].tensor.shape == guarded[b].tensor.shape and a != b:
            arguments[a], guarded[a] = arguments[b], guarded[b]
    if r.random() < 0.05 and (tensors := [key for key, value in arguments.items() if is_plain(value)]):
        key = r.choice(tensors)
        arguments[key] = cut(arguments[key])
        guarded.pop(key, None)
    written = {id(guarded[key]) for key in guarded if (info := parameters[key].alias_info) and info.is_write}

    call: Callable[[], object] = lambda: op(*arguments.values())  # noqa: E731
    failed = False
    try:
        if r.random() < 0.2:
            graph = ops.CpuGraph()
            with graph:
                call()
            for _ in range(r.choice((0, 1, 2))):
                if guarded:
                    guard = guarded[r.choice(list(guarded))]
                    spoil_values(r, guard.tensor)
                    guard.before = guard.memory.clone()
            call = graph.replay
        call()
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        failed = True
        if type(error) is RuntimeError and not str(error).startswith(("pybatch::", "Overflow")):  # those are torch's
            first = re.match(r"\w+", str(error))
            if first is None or first[0] not in parameters:
                raise AssertionError(f"{name}: the error names no argument") from error
    for key, guard in guarded.items():
        assert not guard.changed(not failed and id(guard) in written), f"{name}: {key} was written where it must not be"


if __name__ == "__main__":
    faulthandler.enable()
    torch.set_num_threads(2)
    progress = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    first = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    names = sorted(n.split("::")[1] for n in torch._C._dispatch_get_all_op_names() if n.startswith("pybatch::"))
    for seed in range(first, first + int(sys.argv[2])):
        os.pwrite(progress, f"seed {seed:<12}".encode(), 0)
        if seed % 100 == 0:
            faulthandler.dump_traceback_later(60, exit=True)  # a hang
        fuzz(seed, names)
    os.pwrite(progress, b"done".ljust(17), 0)
