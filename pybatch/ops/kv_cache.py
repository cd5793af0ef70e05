"""What is written into the paged KV cache, and moved within it."""

from __future__ import annotations

from torch import Tensor

from pybatch.ops.library import kernels

INT4_GROUP = 32  # elements of a head that share a scale in an int4 KV cache

LATENT_STEP = 16  # that the width of a cache of latents is a multiple of


def rope_kv_write(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    positions: Tensor,
    slots: Tensor | None,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    v_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    layer_norm: bool = False,
    norm_last: bool = False,
    query_scale: Tensor | None = None,
    interleaved: bool = False,
    key_divisor: Tensor | None = None,
    key_offset: Tensor | None = None,
) -> None:
    """Rotates q in place (RoPE, Su et al. 2021), and writes rotated k, and v, into one layer's paged KV cache.

    q: [T, heads * D] F; k, v: [T, kv_heads * D], q's dtype; positions: [T] int64, rows of rotary;
    slots: [T] int64, block * block_size + offset, negative: not written; without k, v and slots nothing is written.
    rotary: [max_position, R] float32, cos in the first R/2 columns and sin in the rest, R <= D: the first R elements of
    a head are rotated, in pairs (i, i + R/2), or (2i, 2i + 1) if interleaved. q_norm, k_norm: [D], or one for each
    head, [heads, D], of q's dtype: RMSNorm of each head, or LayerNorm without a bias if layer_norm, before the
    rotation, or if norm_last after it. v_norm: [D], likewise, of v. query_scale: [max_position], by which the q of a
    position are multiplied last.
    k_cache: [blocks, kv_heads, D, block_size], v_cache: [blocks, kv_heads, block_size, D], F or int8, or on CUDA
    float8_e4m3fn; each block is contiguous, but there may be gaps between blocks. 8-bit: k_scale, v_scale [blocks,
    kv_heads, block_size] float16, one per token and head.
    int4: k_cache [blocks, kv_heads, D / 2, block_size] and v_cache [blocks, kv_heads, block_size, D / 2] uint8, blocks
    at multiples of 16 bytes, codes packed as csrc/pybatch/kv_cache.h says; k_scale, v_scale [blocks, kv_heads,
    ceil(D / INT4_GROUP), block_size] float16, one per token, head and group of INT4_GROUP elements.
    key_divisor, key_offset: [kv_heads, D] float32. The cache gets rotated k / key_divisor - key_offset, and q is
    multiplied by key_divisor: the softmax of the scores is the same, since all of a query's are less by one number. The
    two elements of a pair have the same divisor, a power of two, so that nothing is rounded.
    """
    kernels.rope_kv_write.default(
        q,
        k,
        v,
        positions,
        slots,
        rotary,
        q_norm,
        k_norm,
        v_norm,
        norm_eps,
        layer_norm,
        norm_last,
        query_scale,
        interleaved,
        k_cache,
        v_cache,
        k_scale,
        v_scale,
        key_divisor,
        key_offset,
    )


def latent_write(
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    norm_eps: float,
    positions: Tensor,
    slots: Tensor,
    rotary: Tensor,
    cache: Tensor,
    out: Tensor,
    *,
    interleaved: bool,
) -> None:
    """Writes what a token keeps for latent attention, and the rotated part of its queries. CPU only.

    q: [T, heads * D] F, of which the last R elements of a head are rotated; kv: [T, L + R], q's dtype, of which the
    last R are; norm: [L], q's dtype, RMSNorm's weight of the first L. positions: [T] int64; slots: [T] int64, block *
    block_size + offset, negative: not written; rotary: [max_position, R] as in rope_kv_write; interleaved: pairs are
    (2i, 2i + 1) instead of (i, i + R/2). cache: [blocks, block_size, W] F, W >= L + R a multiple of LATENT_STEP; each
    block is contiguous; it gets L + R elements and zeros. out: [T, heads * W], q's dtype, gets of each head the R
    elements behind the first L, and zeros behind.
    """
    kernels.latent_write.default(q, kv, norm, norm_eps, positions, slots, rotary, interleaved, cache, out)


def copy_blocks(pool: Tensor, pairs: Tensor) -> None:
    """pool[dst] = pool[src] for every (src, dst) of pairs [n, 2] int64; pool: [blocks, block_bytes] uint8.

    Each dst may occur once only, and no block as both src and dst.
    """
    kernels.copy_blocks.default(pool, pairs)


def swap_blocks(src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """dst[j] = src[i] for every (i, j) of pairs [n, 2] int64; two pools of equal block_bytes, as in copy_blocks.

    Each j may occur once only. The pools must not share memory. One may be on the CPU, pinned, and the other on CUDA.
    """
    kernels.swap_blocks.default(src, dst, pairs)


def rotate_keys(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    blocks: Tensor,
    rotary: Tensor,
    key_offset: Tensor | None = None,
) -> None:
    """Turns every key of block blocks[i] of one layer, in place, by the angles of rotary[i]: it then has the position
    that it was written with plus that of the row.

    Caches and scales as in rope_kv_write. blocks: [n] int64, each once; rotary: [n, R] float32, cos in the first R/2
    columns and sin in the rest: the first R elements of a head turn, in pairs (i, i + R/2). Quantised keys are turned
    in float32 and get new scales. key_offset: [kv_heads, D] float32, as in rope_kv_write.
    """
    kernels.rotate_keys.default(k_cache, v_cache, k_scale, v_scale, blocks, rotary, key_offset)


def gather_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    source: Tensor,
    indices: Tensor,
    destination: Tensor,
) -> None:
    """Token i of KV head h in the block table `destination` becomes token indices[h, i] of the table `source`, bit for
    bit, in one layer.

    Caches and scales as in rope_kv_write. source: [n] int32; indices: [kv_heads, kept] int32, in [0, n * block_size);
    destination: [ceil(kept / block_size)] int32, each block another than those of source or that at the same place. If
    there are any of the latter, which are gathered in place, indices[h, i] >= i, as those of chosen tokens in order
    are.
    """
    kernels.gather_kv.default(k_cache, v_cache, k_scale, v_scale, source, indices, destination)
