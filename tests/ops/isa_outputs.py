"""Outputs of the ops on fixed inputs, for comparing instruction sets: ``isa_outputs.py FILE`` saves {name: tensor}."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from gguf_blocks import largest_blocks, random_blocks
from ops.int4_packing import pack_k, pack_v
from ops.low_rank import random_adapters
from ops.rows import FLOATS
from torch import Tensor

from pybatch import ops


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def matmuls() -> Iterator[tuple[str, Tensor]]:
    """Over types of weight, and shapes with remainders of every kind."""
    for m, n, k in ((1, 64, 96), (7, 50, 37), (19, 40, 2100), (30, 130, 1100), (300, 33, 70)):
        x, weight, bias, out = random(m, k), random(n, k, seed=1), random(n, seed=2), torch.empty(m, n)
        for dtype in FLOATS:
            packed = ops.pack_dense(weight.to(dtype))
            yield f"dense-{dtype}-{m}", ops.matmul_dense(x, packed, bias, out=torch.empty_like(out))
            yield f"dense-{dtype}-same-{m}", ops.matmul_dense(x.to(dtype), packed, bias, out=torch.empty_like(out))
        q, scale = ops.quantize_int8(weight)
        packed = ops.pack_int8(q)
        yield f"w8a16-{m}", ops.matmul_w8a16(x, packed, scale, bias, out=torch.empty_like(out))
        yield f"w8a8-{m}", ops.matmul_w8a8(x, packed, scale, bias, out=torch.empty_like(out))


def gguf_matmuls() -> Iterator[tuple[str, Tensor]]:
    for kind in ops.GGUF_BLOCKS:
        for m, n, k in ((1, 64, 256), (7, 50, 512), (30, 130, 1024), (300, 33, 256)):
            packed = ops.pack_gguf(torch.from_numpy(random_blocks(kind, n, k)), kind)
            yield f"{kind}-{m}", ops.matmul_gguf(random(m, k), packed, out=torch.empty(m, n))
        packed = ops.pack_gguf(torch.from_numpy(largest_blocks(kind, 16, 256)), kind)
        for m in (2, 40):
            x = torch.ones(m, 256)
            x[1::2] = -1
            yield f"{kind}-largest-{m}", ops.matmul_gguf(x, packed, out=torch.empty(m, 16))


def rows() -> Iterator[tuple[str, Tensor]]:
    for dtype in FLOATS:
        x, w = random(9, 1001).mul(4).to(dtype), random(1001, seed=1).to(dtype)
        yield f"rms_norm-{dtype}", ops.rms_norm(x, w, 1e-5)
        yield f"layer_norm-{dtype}", ops.layer_norm(x, w, w, 1e-5)
        for plain in (ops.gelu, ops.gelu_tanh, ops.relu2):
            yield f"{plain.__name__}-{dtype}", plain(x[:, 1:])
        yield f"add_normed-{dtype}", ops.add_normed(x, x.flip(1), w, 1e-5, 0.22)
        yield f"silu_mul-{dtype}", ops.silu_mul(x[:, 1:])
        yield f"gelu_tanh_mul-{dtype}", ops.gelu_tanh_mul(x[:, 1:])
        yield f"xielu-{dtype}", ops.xielu(x[:, 1:], alpha_p=0.8, alpha_n=1.1)
        yield f"clamped_swiglu-{dtype}", ops.clamped_swiglu(x[:, 1:])
        yield f"sigmoid_mul-{dtype}", ops.sigmoid_mul(x[:, 1:], x[:, :-1])
        yield f"gelu_tanh_gate-{dtype}", ops.gelu_tanh_gate(x[:, 1:], x[:, :-1])
        yield f"gated_rms_norm-{dtype}", ops.gated_rms_norm(x[:, 1:], x[:, :-1], w[:100], 1e-5)


def low_rank() -> Iterator[tuple[str, Tensor]]:
    for dtype in FLOATS:
        for m, k in ((1, 37), (40, 2100)):
            lora = random_adapters([50, 33], k, [16, 40], dtype=dtype).packed
            slots = torch.arange(m, dtype=torch.int32) % 3 - 1
            yield f"add_lora-{dtype}-{m}", ops.add_lora(random(m, k), slots, lora, random(m, 83, seed=1).to(dtype))


def linear_attention() -> Iterator[tuple[str, Tensor]]:
    """A prompt and two tokens that are decoded, of widths with remainders and without."""
    starts, source, destination = (torch.tensor(t, dtype=torch.int32) for t in ([0, 40, 41, 42], [-1, 0, 1], [2, 3, 4]))
    batch = starts, source, destination
    for dtype in FLOATS:
        for heads, key_dim, value_dim in ((4, 128, 128), (2, 31, 70)):
            qkv = random(42, 2 * key_dim + heads * value_dim).to(dtype)
            conv, weight = random(5, 3, qkv.shape[1], seed=1).to(dtype), random(4, qkv.shape[1], seed=2).to(dtype)
            x = ops.causal_conv(qkv, weight, conv, *batch)
            yield f"causal_conv-{dtype}-{key_dim}", x
            state, gates = random(5, heads, key_dim, ops.state_width(value_dim), seed=3), random(42, 2 * heads, seed=4)
            a, b = gates.mul(3).to(dtype).chunk(2, 1)
            out = torch.empty(42, heads * value_dim, dtype=dtype)
            ops.gated_delta_rule(x, a, b, torch.arange(1, heads + 1.0), random(heads), state, *batch, out)
            yield f"gated_delta_rule-{dtype}-{key_dim}", out
            yield f"recurrent_state-{dtype}-{key_dim}", state


def attention() -> Iterator[tuple[str, Tensor]]:
    """Prefill and decode, of head dims with remainders, over caches of every type."""
    starts, lengths = torch.tensor([0, 90, 91], dtype=torch.int32), torch.tensor([90, 600], dtype=torch.int32)
    for depth, block in ((64, 16), (40, 8), (256, 32)):
        blocks = 600 // block + 1
        tables = torch.stack([torch.arange(blocks), torch.arange(blocks).flip(0)]).int()
        q, k, v = (
            random(91, 6 * depth),
            random(blocks, 2, depth, block, seed=1),
            random(blocks, 2, block, depth, seed=2),
        )
        scale = (random(blocks, 2, block, seed=3).abs() / 100).half()
        for dtype in (*FLOATS, torch.int8, torch.uint8):
            if dtype == torch.int8:
                caches, scales = [(x * 30).to(dtype) for x in (k, v)], {"k_scale": scale, "v_scale": scale.flip(0)}
            elif dtype == torch.uint8:  # int4
                caches = [pack((x * 2).round().clamp(-8, 7)) for x, pack in ((k, pack_k), (v, pack_v))]
                groups = torch.stack([scale * (1 + g) for g in range(-(-depth // ops.INT4_GROUP))], 2)
                scales = {"k_scale": groups, "v_scale": groups.flip(0)}
            else:
                caches, scales = [k.to(dtype), v.to(dtype)], {}
            out = ops.paged_attention(q, *caches, tables, starts, lengths, depth**-0.5, **scales)
            yield f"attention-{dtype}-{depth}", out
            rows, mass = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(2, 2, 608)
            batch = (tables, starts, lengths, depth**-0.5)
            ops.attention_mass(
                q,
                *caches,
                *(scales.values() or (None, None)),
                *batch,
                first=starts[:2],
                sources=rows - 2,
                rows=rows,
                mass=mass,
            )
            yield f"mass-{dtype}-{depth}", mass


def latent_attention() -> Iterator[tuple[str, Tensor]]:
    starts, lengths = torch.tensor([0, 90, 91], dtype=torch.int32), torch.tensor([90, 600], dtype=torch.int32)
    tables = torch.stack([torch.arange(38), torch.arange(38).flip(0)]).int()
    for dtype in FLOATS:
        q, cache, out = random(91, 13 * 112), random(38, 16, 112, seed=1).to(dtype), torch.empty(91, 13 * 100)
        yield f"latents-{dtype}", ops.latent_attention(q, cache, tables, starts, lengths, 0.1, out=out)


def sampling() -> Iterator[tuple[str, Tensor]]:
    n = 500
    logits, index = random(n, 3001).mul(3), torch.arange(n)
    tokens = ops.sample(
        logits, torch.full((n,), 0.8), index % 60, 1 - index % 5 / 10, index % 3 / 10, seeds=index, positions=index
    )
    yield "sample", tokens
    yield "scale_logits", ops.scale_logits(logits.clone(), 1.7, 30.0)
    masks = torch.randint(-(2**31), 2**31, (n, 94), dtype=torch.int32, generator=torch.Generator().manual_seed(1))
    floats = torch.full((n,), 0.8), index % 60, 1 - index % 5 / 10, index % 3 / 10
    yield "masked sample", ops.sample(logits, *floats, seeds=index, positions=index, masks=masks, mask_rows=index - 1)
    yield from zip(("logprob", "rank", "top_ids", "top_logprobs"), ops.token_logprobs(logits, tokens, 5), strict=True)


if __name__ == "__main__":
    of_rows = {**dict(matmuls()), **dict(gguf_matmuls()), **dict(rows()), **dict(low_rank())}
    outputs = {
        **of_rows,
        **dict(attention()),
        **dict(latent_attention()),
        **dict(linear_attention()),
        **dict(sampling()),
    }
    torch.save({"isa": ops.ISA, "outputs": outputs}, sys.argv[1])
