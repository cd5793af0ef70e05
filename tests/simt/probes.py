"""One short, sharp check of each kernel: fixed small shapes against float64, and bits alone against bits in a batch."""

from __future__ import annotations

from typing import Any

import torch
from gguf_blocks import dequantized, random_blocks
from ops.matmul_sums import exact_int8, float_sum
from torch import Tensor

from simt.device import SimtOps
from simt.suites import running, suite


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attend(ops: SimtOps, cache: torch.dtype, dtype: torch.dtype, window: int) -> None:
    """Prefill, chunked prefill and decode over several splits, in one batch and alone."""
    tests = suite("test_attention")
    shape = tests.Shape(heads=6, kv_heads=2, head_dim=64, cache=cache, dtype=dtype)
    mask = tests.Mask(window=window)
    lengths = ((130, 130), (200, 37), (600, 1), (65, 1))
    sequences = [tests.make_sequence(shape, length, seed) for seed, (length, _) in enumerate(lengths)]
    work = [(s, length - last, length) for s, (length, last) in zip(sequences, lengths, strict=True)]
    with running(tests, ops):
        outs = tests.attend(shape, mask, work)
        for out, (sequence, begin, end) in zip(outs, work, strict=True):
            wanted, tolerance = tests.reference(shape, mask, sequence, begin), tests.TOLERANCE[dtype]
            torch.testing.assert_close(out.double(), wanted, rtol=tolerance, atol=tolerance)
            earlier = max(0, begin - 20)  # as a part of a prefill
            assert torch.equal(tests.attend(shape, mask, [(sequence, earlier, end)])[0][begin - earlier :], out)
        sequence, begin, end = work[1]
        (sequence.v if cache == dtype else sequence.v_scale)[end - 1] = torch.nan
        assert torch.equal(tests.attend(shape, mask, [work[1]])[0][:-1], outs[1][:-1])


def attention_in_order(ops: SimtOps) -> None:
    """Two splits whose values cancel and a third of small ones: in another order their sum has lost these."""
    tests = suite("test_attention")
    shape = tests.Shape(heads=6, kv_heads=2, cache=torch.float16, dtype=torch.float16)
    sequence = tests.make_sequence(shape, 1100, 0)
    sequence.k.zero_()
    sequence.v[:512], sequence.v[512:1024] = 1000, -1000
    with running(tests, ops):
        (alone,) = tests.attend(shape, tests.Mask(), [(sequence, 1099, 1100)])
        (as_prefill,) = tests.attend(shape, tests.Mask(), [(sequence, 1090, 1100)])
    wanted, tolerance = tests.reference(shape, tests.Mask(), sequence, 1099), tests.TOLERANCE[torch.float16]
    torch.testing.assert_close(alone.double(), wanted, rtol=tolerance, atol=1e-5)
    assert torch.equal(as_prefill[-1:], alone)


def attention(ops: SimtOps) -> None:
    attend(ops, torch.float16, torch.float16, 0)
    attend(ops, torch.float16, torch.float16, 20)
    attention_in_order(ops)


def prefill_hopper(ops: SimtOps) -> None:
    """Over several splits, with an inf that some rows do not see: the bits of other chips, whose kernel is another."""
    hopper, tests = SimtOps(ops.path, 90), suite("test_attention")
    attend(hopper, torch.float16, torch.float16, 20)
    shape = tests.Shape(heads=3, kv_heads=1, cache=torch.float16, dtype=torch.float16)
    work = [(tests.make_sequence(shape, length, 0), length - 50, length) for length in (1100, 600)]
    work[1][0].v[580] = torch.inf
    for window in (0, 700):
        outs = []
        for on in (ops, hopper):
            with running(tests, on):
                outs.append(tests.attend(shape, tests.Mask(window=window), work))
        for first, second in zip(*outs, strict=True):
            assert torch.equal(first.nan_to_num(7), second.nan_to_num(7))


def attention_e4m3(ops: SimtOps) -> None:
    attend(ops, torch.float8_e4m3fn, torch.float16, 0)


def attention_int4(ops: SimtOps) -> None:
    attend(ops, torch.uint8, torch.float16, 0)


def attention_int8(ops: SimtOps) -> None:
    attend(ops, torch.int8, torch.float16, 20)


def attention_simple(ops: SimtOps) -> None:
    attend(ops, torch.float32, torch.float32, 0)
    attend(ops, torch.uint8, torch.float32, 20)


def attention_mass(ops: SimtOps) -> None:
    """Two sequences at once, and in pieces."""
    tests = suite("test_kv_pruning")
    with running(tests, ops):
        for cache in (torch.float16, torch.int8):
            shape, lengths = tests.Shape(cache=cache, head_dim=24), [150, 40]
            whole, pieces = tests.Observed(shape, 3, lengths), tests.Observed(shape, 3, lengths)
            whole.observe({1: (0, 40), 0: (0, 150)})
            pieces.observe({0: (0, 70)})
            pieces.observe({0: (70, 149), 1: (0, 40)})
            pieces.observe({0: (149, 150)})
            for s in range(2):
                torch.testing.assert_close(whole.sums(s).double(), whole.expected(s), rtol=1e-4, atol=1e-5)
                assert torch.equal(pieces.sums(s), whole.sums(s))


def rotate_keys(ops: SimtOps) -> None:
    tests = suite("test_kv_pruning")
    cache = tests.Cache(tests.Shape(cache=torch.int8), 2)
    rotary = tests.rotary_rows([100], 64)
    wanted = tests.turned(cache.keys()[1:], rotary)
    ops.rotate_keys(*cache.tensors, torch.tensor([1]), rotary)
    torch.testing.assert_close(cache.keys()[1:], wanted, rtol=0, atol=0.01 * float(wanted.abs().max()))


def gather_kv(ops: SimtOps) -> None:
    """In place."""
    tests = suite("test_kv_pruning")
    cache, before = (tests.Cache(tests.Shape(head_dim=8), 3) for _ in range(2))
    table = torch.tensor([2, 0, 1], dtype=torch.int32)
    indices = torch.arange(4, 48)[:40].repeat(2, 1).int()
    ops.gather_kv(*cache.tensors, table, indices, table)
    keys, wanted = (each.keys()[table.long()].permute(1, 0, 3, 2).flatten(1, 2) for each in (cache, before))
    assert torch.equal(keys[:, :40], wanted[:, 4:44])


def matmul(ops: SimtOps, kernel: str) -> None:
    """Every tile of rows, remainders in every extent, rows alone."""
    tests = suite("test_matmul")
    n, k = 75, 1100
    weight, x, bias = random(n, k, seed=1), random(70, k, seed=2).half(), random(n, seed=3)
    if kernel == "dense":
        packed, scale = ops.pack_dense(weight.half()), None
        wanted, size = (float_sum(x.abs() if size else x, weight.half().abs() if size else
                        weight.half(), bias.abs() if size else bias) for size in (False, True))  # fmt: skip
    else:
        q, scale = ops.quantize_int8(weight)
        packed = ops.pack_int8(q)
        wide = q.double() * scale.double()[:, None]
        wanted = exact_int8(x, q, scale, bias) if kernel == "w8a8" else float_sum(x, wide, bias)
        size = float_sum(x.abs(), wide.abs(), bias.abs())

    def run(rows: Tensor) -> Tensor:
        out = torch.full((len(rows), n), torch.nan)
        # Rows apart, with NaN between them: what lies beyond a row is not to be read into it.
        args = (tests.rows_apart(rows, 4), packed) + (() if scale is None else (scale,))
        return getattr(ops, f"matmul_{kernel}")(*args, bias, out=out)

    for m in (70, 20, 10, 3):
        out = run(x[:m])
        tests.assert_close(out, wanted[:m], size[:m], k)
        for row in (0, 1, m - 1):
            assert torch.equal(run(x[row : row + 1])[0], out[row])


def matmul_dense(ops: SimtOps) -> None:
    matmul(ops, "dense")


def matmul_w8a16(ops: SimtOps) -> None:
    matmul(ops, "w8a16")


def matmul_w8a8(ops: SimtOps) -> None:
    matmul(ops, "w8a8")


def matmul_hopper(ops: SimtOps, kernel: str) -> None:
    """Few rows and many, and remainders in every extent: the bits of other chips, whose kernel is another."""
    hopper = SimtOps(ops.path, 90)
    # The last has more tiles than there are multiprocessors, whose last stages come to lie where whole ones did.
    for m, n, k in ((270, 75, 1104), (270, 260, 704), (270, 20, 296), (1100, 260, 296)):
        weight, x, bias = random(n, k, seed=1), random(m, k).half(), random(n, seed=3)
        if kernel == "dense":
            weights: tuple[Tensor, ...] = (ops.pack_dense(weight.half()),)
            wanted, size = float_sum(x, weight.half(), bias), float_sum(x.abs(), weight.half().abs(), bias.abs())
        else:
            q, scale = ops.quantize_int8(weight)
            weights, wide = (ops.pack_int8(q), scale), q.double() * scale.double()[:, None]
            wanted = exact_int8(x, q, scale, bias) if kernel == "w8a8" else float_sum(x, wide, bias)
            size = float_sum(x.abs(), wide.abs(), bias.abs())

        def run(
            on: SimtOps, x: Tensor, n: int = n, weights: tuple[Tensor, ...] = weights, bias: Tensor = bias
        ) -> Tensor:
            return getattr(on, f"matmul_{kernel}")(x, *weights, bias, out=torch.full((len(x), n), torch.nan))

        out = run(hopper, x)
        suite("test_matmul").assert_close(out, wanted, size, k)
        for rows in (slice(0, 3), slice(3, 14), slice(240, 270)):
            assert torch.equal(run(ops, x[rows]), out[rows])
            assert torch.equal(run(hopper, x[rows]), out[rows])


def matmul_dense_hopper(ops: SimtOps) -> None:
    matmul_hopper(ops, "dense")


def matmul_w8a16_hopper(ops: SimtOps) -> None:
    matmul_hopper(ops, "w8a16")


def matmul_w8a8_hopper(ops: SimtOps) -> None:
    matmul_hopper(ops, "w8a8")


def embedding(ops: SimtOps) -> None:
    """Of GGUF blocks, whose weights it has one by one."""
    for kind in ops.GGUF_BLOCKS:
        blocks, ids = random_blocks(kind, 20, 512), torch.tensor([3, 19, 0])
        packed = ops.pack_gguf(torch.from_numpy(blocks), kind)
        out = ops.embedding(ids, packed, torch.full((3, 512), torch.nan), 20)
        assert torch.equal(out, dequantized(blocks, kind)[ids])


def matmul_gguf(ops: SimtOps) -> None:
    """Rows alone; some, whose parts of K are blocks; and so many that there is a tile for each multiprocessor."""
    tests = suite("test_matmul_gguf")
    with running(tests, ops):
        for k in (1280, 8448):  # four parts, and eight
            packed = ops.pack_gguf(torch.from_numpy(tests.random_blocks("Q5_K", 40, k)), "Q5_K")
            x = random(100, k)
            many, some, few = (
                ops.matmul_gguf(x[rows], packed, out=torch.empty(len(x[rows]), 40))
                for rows in (slice(100), slice(60, 76), slice(60, 63))
            )
            assert torch.equal(many[60:76], some)
            assert torch.equal(some[:3], few)
        for kind in ops.GGUF_BLOCKS:
            n, k = 40, 1280
            blocks, x = tests.random_blocks(kind, n, k), random(20, k)
            packed = ops.pack_gguf(torch.from_numpy(blocks), kind)
            out = ops.matmul_gguf(x, packed, out=torch.full((20, n), torch.nan))
            wanted = tests.quantized(x) @ tests.dequantized(blocks, kind).double().t()
            torch.testing.assert_close(out.double(), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
            assert torch.equal(ops.matmul_gguf(x[3:4], packed, out=torch.empty(1, n))[0], out[3])


def norm(ops: SimtOps) -> None:
    tests = suite("test_norm")
    for rows, width, dtype in ((3, 4100, torch.float32), (2, 70, torch.bfloat16), (5, 576, torch.float16)):
        x, weight = random(rows, width).to(dtype), random(width, seed=1).to(dtype)
        out = ops.rms_norm(x, weight, 1e-5)
        tests.assert_close(out, tests.rms_norm_reference(x, weight, 1e-5))
        assert torch.equal(ops.rms_norm(x[1:2], weight, 1e-5)[0], out[1])


def linear_attention(ops: SimtOps, *layers: Any) -> None:
    """Two sequences whole, and one of them in pieces."""
    tests = suite("test_linear_attention")
    with running(tests, ops):
        for layer in layers:
            sequences = [layer.inputs(9, 1), layer.inputs(5, 2)]
            (first, second), (state, _) = tests.run(layer, sequences, [{0: 9, 1: 5}])
            for out, inputs in ((first, sequences[0]), (second, sequences[1])):
                torch.testing.assert_close(out.double(), layer.reference(inputs), rtol=1e-4, atol=1e-5)
            (pieces,), (last,) = tests.run(layer, sequences[:1], [{0: 2}, {0: 1}, {0: 6}])
            assert torch.equal(pieces, first)
            assert torch.equal(last, state)


def causal_conv(ops: SimtOps) -> None:
    linear_attention(ops, suite("test_linear_attention").Convolution(channels=1100))


def gated_delta_rule(ops: SimtOps) -> None:
    rule = suite("test_linear_attention").DeltaRule
    linear_attention(ops, rule(key_dim=128, value_dim=40), rule(key_dim=31, value_dim=16))


def rope_kv_write(ops: SimtOps) -> None:
    tests = suite("test_rope_kv_write")
    with running(tests, ops):
        for norm, last in ((False, False), (True, False), (True, True)):
            shape = tests.Shape(
                norm=norm, interleaved=norm, cache=torch.int8,
                norm_of_heads=last, layer_norm=last, norm_last=last, scaled=last,
            )  # fmt: skip
            batch, cache = tests.make_batch(shape, 5), tests.Cache.empty(shape, 2)
            q = tests.write(batch, cache)
            rows, keys, values = batch.split()
            q_norm, k_norm = tests.norm_weights(shape)
            wanted_q = tests.reference(batch, rows, q_norm)
            if last:
                wanted_q *= tests.query_scale(shape)[batch.positions, None, None].double()
            torch.testing.assert_close(q.double(), wanted_q, rtol=1e-4, atol=1e-4)
            k, v = (slots[batch.slots] for slots in cache.slots())
            torch.testing.assert_close(k, tests.reference(batch, keys, k_norm), rtol=0, atol=0.04 if last else 0.03)
            wanted = values.double().unflatten(1, (shape.kv_heads, shape.head_dim))
            torch.testing.assert_close(v, wanted, rtol=0, atol=0.03)


def copy_blocks(ops: SimtOps) -> None:
    for block_bytes in (20000, 63):
        pool = (random(4, block_bytes) * 99).to(torch.uint8)
        wanted = pool[[0, 0, 2, 2]]
        ops.copy_blocks(pool, torch.tensor([[0, 1], [2, 3]]))
        assert torch.equal(pool, wanted)


def token_logprobs(ops: SimtOps) -> None:
    logits, tokens = random(3, 700), torch.tensor([5, 699, 0])
    logprob, rank, top_ids, _ = ops.token_logprobs(logits, tokens, 4)
    wanted = logits.double().log_softmax(1)
    picked = logits.gather(1, tokens[:, None])
    torch.testing.assert_close(logprob.double(), wanted.gather(1, tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    assert rank.tolist() == ((logits > picked).sum(1) + 1).tolist()
    assert torch.equal(top_ids, logits.topk(4).indices)
