"""Mixture of experts: routing against its definition, and matmuls over experts bit for bit against the plain ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gguf_blocks import random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, same_bits, threads
from torch import Tensor

from pybatch import ops
from pybatch.ops import Epilogue, Experts, Routing, Scoring

DENSE = ["float32", "float16", "bfloat16", "bfloat16-bfloat16"]
KINDS = [*DENSE, "w8a16", "float8", "float8-blocks", "w8a8", "Q4_0", "Q8_0", "Q4_K", "Q6_K"]
ROUNDING = {torch.float32: 2.0**-23, torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
THREADS = (1, 2)  # counts of them, in each of which the bits are the same
each_kind = pytest.mark.parametrize("kind", KINDS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Stack:
    """The weights of several experts, [experts, n, k], as one kernel takes them; and each expert's alone."""

    def __init__(self, kind: str, experts: int, n: int, k: int) -> None:
        self.x_type, self.n = torch.float32, n
        self.bias = normal(experts, n, seed=3)
        weight = normal(experts, n, k, seed=1) / k**0.5
        if kind in ops.GGUF_BLOCKS:
            self.op: Callable[..., Tensor] = ops.matmul_gguf
            data = torch.from_numpy(random_blocks(kind, experts * n, k)).unflatten(0, (experts, n))
            self.weights = (torch.stack([ops.pack_gguf(each, kind) for each in data]),)
        elif kind == "float8":
            self.op = ops.matmul_w8a16
            codes = (weight * 100).to(torch.float8_e4m3fn)
            self.weights = (torch.stack([ops.pack_float8(each) for each in codes]), torch.full((experts, n), 0.01))
        elif kind == "float8-blocks":
            self.op = ops.matmul_w8a16
            codes, scales = (weight * 100).to(torch.float8_e4m3fn), weight.new_full((n, -(-k // 128)), 0.01)
            self.weights = (torch.stack([ops.pack_float8(each, scales) for each in codes]), torch.ones(experts, n))
        elif kind.startswith("w8"):
            self.op = getattr(ops, f"matmul_{kind}")
            quantized = [ops.quantize_int8(each) for each in weight]
            self.weights = (
                torch.stack([ops.pack_int8(q) for q, _ in quantized]), torch.stack([scale for _, scale in quantized])
            )  # fmt: skip
        else:
            types = [getattr(torch, name) for name in kind.split("-")]
            self.op, self.x_type = ops.matmul_dense, (types[1:] or [torch.float32])[0]
            self.weights = (torch.stack([ops.pack_dense(each.to(types[0])) for each in weight]),)

    def __call__(self, x: Tensor, out: Tensor, **more: Any) -> Tensor:
        return self.op(x, *self.weights, self.bias, out=out, **more)

    def alone(self, expert: int, x: Tensor, out: Tensor, **more: Any) -> Tensor:
        """The plain matmul by one expert's weights."""
        return self.op(x, *(each[expert] for each in self.weights), self.bias[expert], out=out, **more)


def random_experts(ids: Tensor, experts: int) -> Experts:
    """Tokens in a random order in which each expert's are together."""
    pairs = torch.randperm(ids.numel(), generator=torch.Generator().manual_seed(1))
    pairs = pairs[ids.flatten()[pairs].argsort(stable=True)]
    counts = torch.bincount(ids.flatten(), minlength=experts)
    places = torch.empty_like(pairs).scatter_(0, pairs, torch.arange(len(pairs))).view(ids.shape)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    weights = normal(*ids.shape, seed=5).abs()
    return Experts(starts.int(), (pairs // ids.shape[1]).int(), places.int(), weights)


def skewed_ids(tokens: int, experts: int, top_k: int) -> Tensor:
    """Most tokens go to the first experts, none to the last."""
    scores = normal(tokens, experts, seed=7) - 0.4 * torch.arange(experts)
    scores[:, -1] = -torch.inf
    return scores.topk(top_k).indices.sort().values


# ---- routing ----


def route_exactly(logits: Tensor, top_k: int, bias: Tensor | None, scoring: Scoring, groups: int, top_groups: int,
                  group_best: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """In float64: each expert's score, and what it is chosen by."""
    x = logits.double()
    scores = {Scoring.SOFTMAX: x.softmax(1), Scoring.SIGMOID: x.sigmoid(), Scoring.TOP_K_SOFTMAX: x}[scoring]
    choice = scores if bias is None else scores + bias.double()
    by_group = choice.unflatten(1, (groups, -1))
    best = by_group.topk(group_best).values.sum(2)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(top_groups).indices, True)
    return scores, by_group.masked_fill(~kept[..., None], -torch.inf).flatten(1)


@settings(max_examples=80, deadline=None)
@given(
    tokens=st.integers(1, 40), size=st.integers(1, 40), groups=st.sampled_from([1, 1, 2, 4, 8]),
    scoring=st.sampled_from(Scoring), bias=st.booleans(), normalize=st.booleans(), seed=st.integers(0, 2**31),
    data=st.data(),
)  # fmt: skip
def test_routing_is_its_definition(
    tokens: int, size: int, groups: int, scoring: Scoring, bias: bool, normalize: bool, seed: int, data: st.DataObject
) -> None:
    experts = size * groups
    top_groups, group_best = data.draw(st.integers(1, groups)), data.draw(st.integers(1, min(size, 3)))
    top_k = data.draw(st.integers(1, min(size * top_groups, 12)))
    logits, b = normal(tokens, experts, seed=seed) * 3, normal(experts, seed=seed + 1) / 5 if bias else None
    scales = normal(experts, seed=seed + 2) if bias else None
    routing = ops.route_experts(
        apart(logits), top_k, bias=b, expert_scale=scales, scoring=scoring, groups=groups, top_groups=top_groups,
        group_best=group_best, normalize=normalize, scale=2.5,
    )  # fmt: skip
    scores, choice = route_exactly(logits, top_k, b, scoring, groups, top_groups, group_best)
    ids = routing.ids.long()
    assert (ids.diff(dim=1) > 0).all()
    chosen, wanted = choice.gather(1, ids).sort(1).values, choice.topk(top_k).values.sort(1).values
    torch.testing.assert_close(chosen, wanted, rtol=0, atol=1e-5)  # others only where they are as good

    weights = scores.gather(1, ids)
    weights = weights.softmax(1) if scoring == Scoring.TOP_K_SOFTMAX else weights
    weights = weights / weights.sum(1, keepdim=True) if normalize else weights
    weights = weights * 2.5 if scales is None else weights * 2.5 * scales[ids]
    torch.testing.assert_close(routing.weights.double(), weights, rtol=3e-5, atol=1e-6)
    assert_sorted(routing, experts)


def assert_sorted(routing: Routing, experts: int) -> None:
    ids = routing.ids.long()
    order = ids.flatten().argsort(stable=True)
    assert torch.equal(routing.order.long(), order // ids.shape[1])
    assert torch.equal(routing.places.flatten().long(), order.argsort())
    counts = torch.bincount(ids.flatten(), minlength=experts)
    assert routing.starts.tolist() == [0, *counts.cumsum(0).tolist()]


@pytest.mark.parametrize("scoring", Scoring)
def test_of_equal_scores_the_lowest_experts_are_chosen(scoring: Scoring) -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 1.0, 2.0, 2.0, 1.0, 0.0], [0.0] * 8, [-0.0, 0.0] * 4])
    routing = ops.route_experts(logits, 3, scoring=scoring)
    assert routing.ids.tolist() == [[1, 2, 4], [0, 1, 2], [0, 1, 2]]
    grouped = ops.route_experts(logits[1:], 3, scoring=scoring, groups=4, top_groups=2, group_best=2)
    assert grouped.ids.tolist() == [[0, 1, 2], [0, 1, 2]]


@pytest.mark.parametrize("scoring", Scoring)
def test_a_token_is_routed_the_same_alone_and_whatever_another_holds(scoring: Scoring) -> None:
    logits, bias = normal(70, 60), normal(60, seed=1) / 10
    settings_ = {"bias": bias, "scoring": scoring, "groups": 4, "top_groups": 2, "group_best": 2, "normalize": True}
    with threads(1):
        whole = ops.route_experts(logits, 6, **settings_)
        for i in range(len(logits)):
            alone = ops.route_experts(logits[i : i + 1], 6, **settings_)
            assert torch.equal(alone.ids, whole.ids[i : i + 1])
            assert same_bits(alone.weights, whole.weights[i : i + 1])
    logits[3], logits[9], logits[11, 5] = torch.nan, torch.inf, -torch.inf
    with threads(2):
        other = ops.route_experts(logits, 6, **settings_)
    assert_sorted(other, 60)
    assert other.weights[3].isnan().all()
    good = [i for i in range(70) if i not in (3, 9, 11)]
    assert torch.equal(other.ids[good], whole.ids[good])
    assert same_bits(other.weights[good], whole.weights[good])


# ---- matmuls ----


@each_kind
@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(1, 9, 3), (13, 5, 2), (40, 4, 2)])
def test_a_row_has_the_bits_of_its_experts_matmul_alone(kind: str, tokens: int, experts: int, top_k: int) -> None:
    k, width = 256, 40
    ids = skewed_ids(tokens, experts, top_k)
    routed = random_experts(ids, experts)
    starts, order, places, weights = routed
    assert order is not None
    assert places is not None
    assert weights is not None
    for epilogue, n in ((Epilogue.STORE, 56), (Epilogue.SILU_MUL, 96)):
        stack = Stack(kind, experts, n, k)
        columns = n if epilogue == Epilogue.STORE else width
        x, norm = normal(tokens, k, seed=2).to(stack.x_type), normal(k, seed=4).to(stack.x_type)
        fused = {"norm": norm, "norm_eps": 1e-5, "epilogue": epilogue}
        wanted = torch.empty(len(order), columns)
        for e in range(experts):
            mine = slice(int(starts[e]), int(starts[e + 1]))
            for row in range(mine.start, mine.stop):  # each by itself
                stack.alone(e, x[order[row] : order[row] + 1], wanted[row : row + 1], **fused)
        for count in THREADS:
            with threads(count):
                out = stack(apart(x), apart(torch.empty(len(order), columns)), experts=Experts(starts, order), **fused)
            assert same_bits(out, wanted), f"{epilogue!r}, {count} threads"


@each_kind
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("epilogue", [Epilogue.STORE, Epilogue.ADD])
def test_a_tokens_sum_is_that_of_its_products(kind: str, dtype: torch.dtype, epilogue: Epilogue) -> None:
    tokens, experts, top_k, n, k = 40, 6, 3, 88, 256
    starts, _, places, weights = routed = random_experts(skewed_ids(tokens, experts, top_k), experts)
    assert places is not None
    assert weights is not None
    stack = Stack(kind, experts, n, k)
    x, before = normal(tokens * top_k, k, seed=2).to(stack.x_type), normal(tokens, n, seed=8).to(dtype)
    products = stack(x, torch.empty(tokens * top_k, n, dtype=dtype), experts=Experts(starts)).double()
    picked = weights.double()[..., None] * products[places.long()]
    summed = Experts(starts, None, places, weights)
    outs = []
    for count in THREADS:
        with threads(count):
            out = stack(x, apart(before), experts=summed, epilogue=epilogue)
        outs.append(out.contiguous())
    assert all(same_bits(outs[0], out) for out in outs[1:])
    wanted = picked.sum(1) + (before.double() if epilogue == Epilogue.ADD else 0)
    size = picked.abs().sum(1) + before.double().abs()
    assert ((outs[0].double() - wanted).abs() <= (2 * ROUNDING[dtype] + top_k * 2.0**-23) * size).all()
    assert routed.tokens is not None


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS), tokens=st.integers(1, 150), experts=st.integers(1, 40), n=st.integers(1, 100),
    seed=st.integers(0, 2**31), data=st.data(),
)  # fmt: skip
def test_a_layer_gives_a_token_the_same_alone_and_in_any_batch(
    kind: str, tokens: int, experts: int, n: int, seed: int, data: st.DataObject
) -> None:
    top_k = data.draw(st.integers(1, min(experts, 8)))
    hidden, width = 256, 32 if kind not in ("Q4_K", "Q6_K") else 256
    first, second = Stack(kind, experts, 2 * width, hidden), Stack(kind, experts, n, width)
    x, logits = normal(tokens, hidden, seed=seed).to(first.x_type), normal(tokens, experts, seed=seed + 1)
    before = normal(tokens, n, seed=seed + 2).to(first.x_type)

    def layer(rows: slice) -> Tensor:
        routing = ops.route_experts(logits[rows], top_k)
        gated = torch.empty(routing.places.numel(), width, dtype=first.x_type)
        first(x[rows], gated, experts=routing.gathered(), epilogue=Epilogue.SILU_MUL)
        return second(gated, before[rows].clone(), experts=routing.summed(), epilogue=Epilogue.ADD)

    with threads(2):
        whole = layer(slice(0, tokens))
    with threads(1):
        for i in {0, tokens // 2, tokens - 1}:
            assert same_bits(layer(slice(i, i + 1)), whole[i : i + 1])
        assert same_bits(layer(slice(tokens // 3, tokens)), whole[tokens // 3 :])


@each_kind
def test_no_tokens_is_nothing(kind: str) -> None:
    stack = Stack(kind, 3, 32, 256)
    routing = ops.route_experts(torch.empty(0, 3), 2)
    assert routing.starts.tolist() == [0, 0, 0, 0]
    gathered = stack(torch.empty(0, 256, dtype=stack.x_type), torch.empty(0, 32), experts=routing.gathered())
    assert gathered.shape == (0, 32)
    rows = torch.empty(0, 256, dtype=stack.x_type)
    assert stack(rows, torch.empty(0, 32), experts=routing.summed()).shape == (0, 32)


@each_kind
def test_a_row_that_is_not_finite_stays_its_tokens(kind: str) -> None:
    stack = Stack(kind, 4, 48, 256)
    routing = ops.route_experts(normal(60, 4), 2)
    x = normal(60, 256).to(stack.x_type)
    gathered = stack(x, torch.empty(120, 48), experts=routing.gathered())
    x[7, 3] = torch.inf
    other = stack(x, torch.empty(120, 48), experts=routing.gathered())
    of_others = (routing.order != 7).nonzero()[:, 0]
    assert same_bits(other[of_others], gathered[of_others])
    assert not other[routing.places[7].long()].isfinite().any()


@pytest.mark.host
def test_a_replayed_graph_routes_what_the_logits_are_then() -> None:
    tokens, experts, top_k = 20, 6, 2
    first, second = Stack("float32", experts, 64, 40), Stack("float32", experts, 24, 32)
    x, logits, routing = normal(tokens, 40), normal(tokens, experts), Routing.empty(tokens, experts, top_k)
    gated, out = torch.empty(tokens * top_k, 32), torch.empty(tokens, 24)

    def layer() -> None:
        ops.route_experts(logits, top_k, out=routing)
        first(x, gated, experts=routing.gathered(), epilogue=Epilogue.SILU_MUL)
        second(gated, out, experts=routing.summed())

    graph = ops.CpuGraph()
    with graph:
        layer()
    for seed in (1, 2):
        logits.copy_(normal(tokens, experts, seed=seed))
        graph.replay()
        replayed = out.clone()
        layer()
        assert same_bits(replayed, out)


@pytest.mark.host
def test_wrong_arguments_are_named() -> None:
    weight, x = torch.stack([ops.pack_dense(normal(20, 8))] * 3), normal(4, 8)
    routing = ops.route_experts(normal(4, 3), 2)
    gathered, summed = routing.gathered(), routing.summed()
    rows, out = normal(8, 8), torch.zeros(4, 20)
    few = routing.starts.clone()
    few[-1] = 7

    def matmul(experts: Experts, x: Tensor = x, out: Tensor = torch.zeros(8, 20), **more: Any) -> None:  # noqa: B008
        ops.matmul_dense(x, weight, out=out, experts=experts, **more)

    bad: list[tuple[str, Callable[[], object]]] = [
        ("starts: ", lambda: matmul(gathered._replace(starts=routing.starts.long()))),
        ("starts: ", lambda: matmul(gathered._replace(starts=routing.starts[:-1]))),
        ("starts: ", lambda: matmul(gathered._replace(starts=few))),
        ("tokens: ", lambda: matmul(gathered._replace(tokens=routing.order + 1))),
        ("out: ", lambda: matmul(gathered, out=torch.zeros(4, 20))),
        ("bias: ", lambda: matmul(gathered, bias=torch.zeros(20))),
        ("weight: ", lambda: matmul(gathered, x=normal(4, 9))),
        ("weight: ", lambda: ops.matmul_dense(x, weight[0], out=torch.zeros(8, 20), experts=gathered)),
        ("places: ", lambda: matmul(summed._replace(places=routing.places[:3]), rows, out)),
        ("places: ", lambda: matmul(summed._replace(places=routing.places + 1), rows, out)),
        ("weights: ", lambda: matmul(summed._replace(weights=None), rows, out)),
        ("weights: ", lambda: matmul(summed._replace(weights=routing.weights[:3]), rows, out)),
        ("out: ", lambda: matmul(summed, rows, torch.zeros(8, 20))),
        ("epilogue: ", lambda: matmul(summed, rows, torch.zeros(4, 10), epilogue=Epilogue.SILU_MUL)),
        ("logits: ", lambda: ops.route_experts(normal(4, 3).double(), 2)),
        ("ids: ", lambda: ops.route_experts(normal(4, 3), 4)),
        ("groups: ", lambda: ops.route_experts(normal(4, 3), 1, groups=2)),
        ("top_groups: ", lambda: ops.route_experts(normal(4, 4), 1, groups=2, top_groups=3)),
        ("group_best: ", lambda: ops.route_experts(normal(4, 4), 1, groups=2, group_best=3)),
        ("bias: ", lambda: ops.route_experts(normal(4, 3), 1, bias=torch.zeros(4))),
    ]
    for name, call in bad:
        with pytest.raises(RuntimeError, match=f"^{name}expected"):
            call()
