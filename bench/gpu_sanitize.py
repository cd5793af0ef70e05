"""Every CUDA kernel once, on small shapes with odd edges, for compute-sanitizer to watch."""

from __future__ import annotations

import torch

from pybatch import ops

BLOCK = 16


def attention_and_kv(dtype: torch.dtype, cache: torch.dtype, head_dim: int) -> None:
    kv_heads, heads, queries, lengths = 2, 8, [1, 1, 37], [700, 9, 550]
    blocks_each = -(-max(lengths) // BLOCK)
    blocks, tokens = blocks_each * len(lengths), sum(queries)
    kw = {"device": "cuda"}
    int4 = cache == torch.uint8  # two to a byte
    width = head_dim // 2 if int4 else head_dim
    k = torch.zeros(blocks, kv_heads, width, BLOCK, dtype=cache, **kw)
    v = torch.zeros(blocks, kv_heads, BLOCK, width, dtype=cache, **kw)
    groups = (-(-head_dim // ops.INT4_GROUP),) if int4 else ()
    scales = (
        {
            name: torch.ones(blocks, kv_heads, *groups, BLOCK, dtype=torch.float16, **kw)
            for name in ("k_scale", "v_scale")
        }
        if cache.itemsize == 1
        else {}
    )
    q = torch.randn(tokens, heads * head_dim, **kw).to(dtype)
    new = torch.randn(tokens, kv_heads * head_dim, **kw).to(dtype)
    rotary = torch.rand(1024, head_dim, **kw)
    at = torch.arange(tokens, **kw)
    ops.rope_kv_write(q, new, new, at, at, rotary, k, v, **scales)
    tables = torch.arange(blocks, dtype=torch.int32, **kw).view(len(lengths), -1)
    start = torch.tensor([0, *torch.tensor(queries).cumsum(0).tolist()], dtype=torch.int32, **kw)
    seq_lens = torch.tensor(lengths, dtype=torch.int32, **kw)
    for window in (0, 100):
        ops.paged_attention(q, k, v, tables, start, seq_lens, 0.1, window=window, **scales)
    if int4:
        return
    layer = (k, v, scales.get("k_scale"), scales.get("v_scale"))
    rows = torch.arange(len(lengths), dtype=torch.int32, **kw)
    mass = torch.zeros(len(lengths), kv_heads, blocks_each * BLOCK, **kw)
    ops.attention_mass(
        q, *layer, tables, start, seq_lens, 0.1, first=start[:-1].contiguous(), sources=rows - len(lengths), rows=rows,
        mass=mass,
    )  # fmt: skip
    ops.rotate_keys(*layer, torch.tensor([3, 0], **kw), rotary[:2].contiguous())
    indices = torch.tensor([range(5, 5 + 2 * BLOCK, 2)] * kv_heads, dtype=torch.int32, **kw)[:, :11].contiguous()
    ops.gather_kv(*layer, tables[0], indices, tables[1, :1].contiguous())
    ops.gather_kv(*layer, tables[0], indices, tables[0, :1].contiguous())  # in place


def matmuls(dtype: torch.dtype) -> None:
    n, k = 200, 300
    weight = torch.randn(n, k, device="cuda")
    q, scale = ops.quantize_int8(weight)
    for m in (1, 9, 17, 33, 500):
        x, out = torch.randn(m, k, device="cuda").to(dtype), torch.empty(m, n, device="cuda", dtype=dtype)
        ops.matmul_dense(x, ops.pack_dense(weight.to(dtype)), out=out)
        ops.matmul_w8a16(x, ops.pack_int8(q), scale, out=out)
        codes, scales = (weight * 100).to(torch.float8_e4m3fn), torch.rand(n, -(-k // 128), device="cuda")
        ops.matmul_w8a16(x, ops.pack_float8(codes), scale, out=out)
        ops.matmul_w8a16(x, ops.pack_float8(codes, scales), scale, out=out)
        ops.matmul_w8a8(x, ops.pack_int8(q), scale, out=out)
        for matmul in (ops.matmul_w8a16, ops.matmul_w8a8):
            matmul(x, ops.pack_int8(q), scale, out=out, norm=x[0].clone(), epilogue=ops.Epilogue.ADD)
        gated = out[:, :96].contiguous()  # of 200 columns, in panels of gate and up
        ops.matmul_dense(x, ops.pack_dense(weight[:192].to(dtype)), out=gated, epilogue=ops.Epilogue.SILU_MUL)
        for kind, block in ops.GGUF_BLOCKS.items():
            data = torch.zeros(n, 512 // block.weights * block.bytes, dtype=torch.uint8, device="cuda")
            blocks = x.repeat(1, 2)[:, :512].contiguous()
            ops.matmul_gguf(blocks, ops.pack_gguf(data, kind), out=out)


def large_matmul() -> None:
    """W8A8 in the large tile of Hopper, which pays for many blocks alone."""
    m, n, k = 2304, 2000, 300
    q, scale = ops.quantize_int8(torch.randn(n, k, device="cuda"))
    x, out = torch.randn(m, k, device="cuda"), torch.empty(m, n, device="cuda")
    ops.matmul_w8a8(x, ops.pack_int8(q), scale, out=out)


def row_ops(dtype: torch.dtype) -> None:
    x = torch.randn(3, 1002, device="cuda").to(dtype)
    weight = x[0].clone()
    ops.rms_norm(x, weight, 1e-5, x.clone())
    ops.layer_norm(x, weight, weight, 1e-5)
    for activation in (ops.gelu, ops.gelu_tanh, ops.relu2):
        activation(x)
    ops.silu_mul(x)
    ops.gelu_tanh_mul(x)
    ops.clamped_swiglu(x)
    ops.xielu(x, alpha_p=0.8, alpha_n=1.1)
    ops.gelu_tanh_gate(x, x)
    ops.embedding(torch.tensor([0, 2], device="cuda"), x, x.new_empty(2, 1002), 3)
    pool = torch.zeros(4, 40000, dtype=torch.uint8, device="cuda")
    ops.copy_blocks(pool, torch.tensor([[0, 1], [2, 3]], device="cuda"))


def low_rank(dtype: torch.dtype) -> None:
    """Rows of two adapters and of none, few and many."""
    for rows in (3, 80):
        slots = torch.arange(rows, dtype=torch.int32, device="cuda") % 3 - 1
        x, product = torch.randn(rows, 301, device="cuda").to(dtype), torch.zeros(rows, 64, device="cuda").to(dtype)
        panels = torch.tensor([[0, 16, 0], [16, 16, 1], [32, 8, 0], [48, 8, 1]], dtype=torch.int32, device="cuda")
        a, b = (
            torch.randn(2, 2, 2, 301, 16, device="cuda").to(dtype),
            torch.randn(2, 4, 32, 16, device="cuda").to(dtype),
        )
        ranks = torch.tensor([[32, 5], [0, 17]], dtype=torch.int32, device="cuda")
        out = torch.empty(rows, 24, device="cuda").to(dtype)
        ops.add_lora(x, slots, ops.Lora(a, b, ranks, panels), product)
        ops.add_lora(x, slots, ops.Lora(a, b, ranks, panels), product, out, epilogue=ops.Epilogue.SILU_MUL)


def sampling() -> None:
    rows, vocab = 3, 5000
    logits = torch.randn(rows, vocab, device="cuda")

    def each(x: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((rows,), x, dtype=dtype, device="cuda")

    starts = torch.tensor([0, 2, 4, 6], device="cuda")
    ids = torch.tensor([1, 1, 2, 3, 4, 4], device="cuda")
    ops.adjust_logits(logits, each(1.1), each(0.5), each(0.5), ids, starts, starts[:-1], ids, ids.float(), starts)
    seeds = each(7, torch.int64)
    tokens = ops.sample(logits, each(0.8), each(50, torch.int64), each(0.9), each(0.01), seeds, seeds)
    masks = torch.randint(-(2**31), 2**31, (2, 157), dtype=torch.int32, device="cuda")
    rows_of_masks = torch.tensor([1, -1, 0], device="cuda")
    settings = each(0.8), each(50, torch.int64), each(0.9), each(0.01), seeds, seeds
    ops.sample(logits, *settings, masks=masks, mask_rows=rows_of_masks)
    ops.token_logprobs(logits, tokens, 5)


def main() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for cache in (dtype, torch.int8, torch.float8_e4m3fn, torch.uint8):
            for head_dim in (64, 80, 128, 256):
                attention_and_kv(dtype, cache, head_dim)
        matmuls(dtype)
        row_ops(dtype)
        low_rank(dtype)
    large_matmul()
    sampling()
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
