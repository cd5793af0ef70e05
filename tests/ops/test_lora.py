"""Low-rank adapters of a batch's rows, against float64 and bit against bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.low_rank import random_adapters
from ops.rows import FLOATS, apart, same_bits, threads
from torch import Tensor
from torch.nn import functional

from pybatch import ops
from pybatch.ops import Epilogue

ROUNDING = {torch.float32: 2.0**-22, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
GATED = {Epilogue.SILU_MUL: functional.silu, Epilogue.GELU_TANH_MUL: lambda x: functional.gelu(x, approximate="tanh")}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_slots(rows: int, adapters: int, seed: int = 0) -> Tensor:
    """Some of none, and often some adapters without rows."""
    return torch.randint(-1, adapters, (rows,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.one_of(st.integers(0, 40), st.sampled_from([70, 100])),
    k=st.one_of(st.integers(1, 70), st.sampled_from([1024, 2050])),
    widths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    ranks=st.lists(st.sampled_from([0, 1, 2, 8, 16, 17, 64, 256]), min_size=1, max_size=5),
    types=st.tuples(*[st.sampled_from(FLOATS)] * 3),
    seed=st.integers(0, 99),
)
def test_products_are_changed_as_in_float64(
    rows: int, k: int, widths: list[int], ranks: list[int], types: tuple[torch.dtype, ...], seed: int
) -> None:
    adapters = random_adapters(widths, k, ranks, dtype=types[0], seed=seed)
    x, product = normal(rows, k, seed=seed).to(types[1]), normal(rows, sum(widths), seed=seed + 1).to(types[2])
    slots = random_slots(rows, len(ranks), seed)
    wanted, before = adapters.changed(x, slots, product), product.clone()
    out = ops.add_lora(x, slots, adapters.packed, product)
    assert out is product
    rounding = ROUNDING[types[2]]
    torch.testing.assert_close(out.double(), wanted, rtol=rounding, atol=rounding + 3e-5)
    unchanged = slots < 0
    assert same_bits(out[unchanged], before[unchanged])


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 40),
    width=st.one_of(st.integers(1, 70), st.just(600)),
    epilogue=st.sampled_from(list(GATED)),
    dtype=st.sampled_from(FLOATS),
    seed=st.integers(0, 99),
)
def test_gates_and_ups_are_multiplied_after_the_change(
    rows: int, width: int, epilogue: Epilogue, dtype: torch.dtype, seed: int
) -> None:
    adapters = random_adapters([width, width], 40, [8, 0, 20], gated=True, seed=seed)
    columns = 2 * -(-width // 16) * 16
    x, product = normal(rows, 40, seed=seed), normal(rows, columns, seed=seed + 1).to(dtype)
    slots, out = random_slots(rows, 3, seed), torch.empty(rows, width, dtype=dtype)
    wanted = adapters.changed(x, slots, product)
    ops.add_lora(x, slots, adapters.packed, product, out, epilogue=epilogue)
    gate, up = (wanted[:, part].to(dtype).double() for part in adapters.parts)
    torch.testing.assert_close(
        out.double(), GATED[epilogue](gate) * up, rtol=3 * ROUNDING[dtype], atol=3 * ROUNDING[dtype] + 1e-4
    )


@pytest.mark.parametrize("epilogue", GATED)
@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_without_an_adapter_have_the_bits_of_the_fused_epilogue(epilogue: Epilogue, dtype: torch.dtype) -> None:
    x, width = normal(7, 50).to(dtype), 40
    weight = ops.pack_dense(ops.interleave_gate_up(*normal(2, width, 50, seed=1)).to(dtype))
    wanted = ops.matmul_dense(x, weight, out=torch.empty(7, width, dtype=dtype), epilogue=epilogue)
    product = ops.matmul_dense(x, weight, out=torch.empty(7, 96, dtype=dtype))
    adapters = random_adapters([width, width], 50, [8], gated=True)
    slots, out = torch.tensor([-1, 0, -1, -1, 0, -1, -1], dtype=torch.int32), torch.empty(7, width, dtype=dtype)
    ops.add_lora(x, slots, adapters.packed, product, out, epilogue=epilogue)
    assert same_bits(out[slots < 0], wanted[slots < 0])
    assert not torch.equal(out[slots >= 0], wanted[slots >= 0])


@pytest.mark.parametrize("k", [50, 2100])
@pytest.mark.parametrize("gated", [False, True])
def test_a_row_has_its_bits_in_any_company(k: int, gated: bool) -> None:
    """Alone, in the batch, among rows of any adapters, reversed, strided, with one thread and two."""
    widths = [600, 600] if gated else [96, 17, 40]
    adapters = random_adapters(widths, k, [16, 5, 100], gated=gated).packed
    rows, columns = 75, 1216 if gated else sum(widths)
    x, before, slots = normal(rows, k), normal(rows, columns, seed=1), random_slots(rows, 3)
    slots[:40] = 1  # of one adapter more than are worked on together

    def run(x: Tensor, before: Tensor, slots: Tensor) -> Tensor:
        product = apart(before)
        out = torch.empty(len(x), 600) if gated else None
        epilogue = Epilogue.SILU_MUL if gated else ops.STORE
        return ops.add_lora(x, slots, adapters, product, out, epilogue=epilogue).contiguous()

    with threads(1):
        whole = run(x, before, slots)
        for i in (0, 1, 39, 40, 41, 60, 74):
            alone = slice(i, i + 1)
            assert same_bits(run(x[alone], before[alone], slots[alone]), whole[alone])
        assert same_bits(run(x.flip(0), before.flip(0), slots.flip(0)).flip(0), whole)
        assert same_bits(run(apart(x), before, slots), whole)
        others = slots.roll(1)
        others[::5] = slots[::5]
        assert same_bits(run(x, before, others)[::5], whole[::5])
    with threads(2):
        assert same_bits(run(x, before, slots), whole)


def test_ranks_beyond_an_adapters_own_change_no_bit() -> None:
    small = random_adapters([40], 60, [5, 3], seed=1)
    large = random_adapters([40], 60, [5, 3, 200], seed=1)
    x, slots = normal(6, 60), torch.tensor([0, 1, -1, 0, 1, 1], dtype=torch.int32)
    outs = [ops.add_lora(x, slots, each.packed, normal(6, 40, seed=2)) for each in (small, large)]
    assert same_bits(*outs)


@pytest.mark.host
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slots": torch.tensor([0, 2, 0], dtype=torch.int32)}, r"slots: expected below 2 .*, got 2 at 1"),
        ({"slots": torch.zeros(3, dtype=torch.int64)}, "slots: expected int32"),
        ({"ranks": torch.full((2, 2), 17, dtype=torch.int32)}, "ranks: expected 0 to 16, got 17"),
        ({"panels": torch.tensor([[0, 16, 0], [8, 16, 1]], dtype=torch.int32)}, "panels: expected ascending runs"),
        ({"panels": torch.tensor([[0, 16, 0], [16, 16, 2]], dtype=torch.int32)}, r"panels: expected parts in \[0, 2\)"),
        ({"panels": torch.tensor([[0, 16, 0], [2**31 - 1, 16, 1]], dtype=torch.int32)}, "panels: expected ascending"),
        ({"a": torch.empty(2, 2, 0, 8, 16), "b": torch.empty(2, 2, 0, 16)}, "a: expected ranks of 16 to 1024, got 0"),
        ({"a": torch.empty(0, 2, 1, 8, 16), "b": torch.empty(0, 2, 16, 16)}, "a: expected at least one adapter"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(change: dict[str, Tensor], message: str) -> None:
    lora = random_adapters([16, 16], 8, [4, 4]).packed
    slots = change.pop("slots", torch.zeros(3, dtype=torch.int32))
    with pytest.raises(RuntimeError, match=message):
        ops.add_lora(torch.ones(3, 8), slots, lora._replace(**change), torch.ones(3, 32))


@pytest.mark.host
def test_inputs_without_columns_are_refused() -> None:
    """It was a division by zero, as was a rank of 0."""
    lora = random_adapters([16], 8, [4]).packed._replace(a=torch.empty(1, 1, 1, 0, 16))
    with pytest.raises(RuntimeError, match="x: expected at least one column"):
        ops.add_lora(torch.ones(3, 0), torch.zeros(3, dtype=torch.int32), lora, torch.ones(3, 16))
