"""The ops of gated delta net layers: against float64, and bit for bit in any pieces and company."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import FLOATS, apart, assert_rows_stand_alone, same_bits, threads
from torch import Tensor
from torch.nn import functional

from pybatch import ops

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
NONE = -1


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def slots_apart(count: int, *shape: int, dtype: torch.dtype) -> Tensor:
    """As in a pool, with NaN between slots; full of NaN, as nothing may be read that was not written."""
    return torch.full((count, 3, *shape), torch.nan, dtype=dtype)[:, 1]


@dataclass(frozen=True)
class Convolution:
    channels: int
    taps: int = 4
    dtype: torch.dtype = torch.float32

    def inputs(self, length: int, seed: int) -> tuple[Tensor, ...]:
        return (normal(length, self.channels, dtype=self.dtype, seed=seed),)

    @property
    def weight(self) -> Tensor:
        return normal(self.taps, self.channels, dtype=self.dtype, seed=99)

    def states(self, count: int) -> Tensor:
        return slots_apart(count, self.taps - 1, self.channels, dtype=self.dtype)

    def run(self, inputs: tuple[Tensor, ...], state: Tensor, *batch: Tensor) -> Tensor:
        return ops.causal_conv(apart(inputs[0]), self.weight, state, *batch)

    def reference(self, inputs: tuple[Tensor, ...]) -> Tensor:
        padded = functional.pad(inputs[0].double().T, (self.taps - 1, 0))
        weight = self.weight.double().T[:, None]
        return functional.silu(functional.conv1d(padded[None], weight, groups=self.channels)[0].T)


@dataclass(frozen=True)
class DeltaRule:
    key_heads: int = 2
    group: int = 2  # value heads that share a key head
    key_dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32

    @property
    def heads(self) -> int:
        return self.key_heads * self.group

    @property
    def widths(self) -> tuple[int, int, int]:
        keys = self.key_heads * self.key_dim
        return keys, keys, self.heads * self.value_dim

    @property
    def gates(self) -> tuple[Tensor, Tensor]:
        """rate from slow to fast, dt_bias."""
        return torch.linspace(-4, 2, self.heads).exp(), normal(self.heads, seed=98)

    def inputs(self, length: int, seed: int) -> tuple[Tensor, ...]:
        a, b = (normal(length, self.heads, seed=seed + i).mul(3).to(self.dtype) for i in (1, 2))
        return normal(length, sum(self.widths), dtype=self.dtype, seed=seed), a, b

    def states(self, count: int) -> Tensor:
        width = ops.state_width(self.value_dim)
        return slots_apart(count, self.heads, self.key_dim, width, dtype=torch.float32)

    def run(self, inputs: tuple[Tensor, ...], state: Tensor, *batch: Tensor) -> Tensor:
        qkv, a, b = map(apart, inputs)
        out = torch.full((len(qkv), self.widths[2]), torch.nan, dtype=self.dtype)
        return ops.gated_delta_rule(qkv, a, b, *self.gates, state, *batch, out)

    def reference(self, inputs: tuple[Tensor, ...]) -> Tensor:
        qkv, a, b = (each.double() for each in inputs)
        q, k, v = qkv.split(self.widths, 1)
        q, k = (each.unflatten(1, (self.key_heads, -1)).repeat_interleave(self.group, 1) for each in (q, k))
        q, k = (each / (each.square().sum(-1, keepdim=True) + 1e-6).sqrt() for each in (q, k))
        v = v.unflatten(1, (self.heads, -1))
        rate, dt_bias = (each.double() for each in self.gates)
        decay = (-rate * functional.softplus(a + dt_bias)).exp()
        state = torch.zeros(self.heads, self.key_dim, self.value_dim, dtype=torch.float64)
        out = torch.empty_like(v)
        for t in range(len(v)):
            state = state * decay[t, :, None, None]
            error = v[t] - torch.einsum("hkv,hk->hv", state, k[t])
            state = state + torch.einsum("hk,hv->hkv", k[t], error * b[t].sigmoid()[:, None])
            out[t] = torch.einsum("hkv,hk->hv", state, q[t]) / self.key_dim**0.5
        return out.flatten(1)


Layer = Convolution | DeltaRule
Steps = list[dict[int, int]]  # of each step the sequences, and how many of their tokens it has


def int32(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def run(layer: Layer, sequences: list[tuple[Tensor, ...]], steps: Steps) -> tuple[list[Tensor], list[Tensor]]:
    """Each sequence's outputs and last state. A sequence has two slots, which it reads and writes by turns."""
    states = layer.states(2 * len(sequences))
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    done, source = [0] * len(sequences), [NONE] * len(sequences)
    for step in steps:
        taken = {s: tuple(t[done[s] : done[s] + count] for t in sequences[s]) for s, count in step.items()}
        rows = tuple(map(torch.cat, zip(*taken.values(), strict=True)))
        starts = int32([0, *accumulate(step.values())])
        destination = {s: 2 * s + (source[s] % 2 == 0) for s in step}
        out = layer.run(rows, states, starts, int32([source[s] for s in step]), int32([*destination.values()]))
        for s, piece in zip(step, out.split(list(step.values())), strict=True):
            outputs[s].append(piece)
            done[s] += step[s]
            source[s] = destination[s]
    return [torch.cat(each) for each in outputs], [states[slot].clone() for slot in source]


conv_layers = st.builds(
    Convolution, channels=st.sampled_from([1, 7, 16, 40, 130]), taps=st.integers(2, 8), dtype=st.sampled_from(FLOATS)
)
delta_layers = st.builds(
    DeltaRule,
    key_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    key_dim=st.sampled_from([1, 8, 31, 128, 256]),
    value_dim=st.sampled_from([1, 12, 16, 40, 64, 70]),
    dtype=st.sampled_from(FLOATS),
)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(layer=st.one_of(conv_layers, delta_layers), length=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_whole_sequence_matches_float64(layer: Layer, length: int, seed: int) -> None:
    inputs = layer.inputs(length, seed)
    (out,), _ = run(layer, [inputs], [{0: length}])
    tolerance = TOLERANCE[layer.dtype]
    torch.testing.assert_close(out.double(), layer.reference(inputs), rtol=tolerance, atol=tolerance / 4)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data(), layer=st.one_of(conv_layers, delta_layers))
def test_pieces_company_and_threads_do_not_show(data: st.DataObject, layer: Layer) -> None:
    lengths = data.draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    sequences = [layer.inputs(length, seed) for seed, length in enumerate(lengths)]
    alone = []
    with threads(1):
        for sequence, length in zip(sequences, lengths, strict=True):
            alone += zip(*run(layer, [sequence], [{0: length}]), strict=True)
    left, steps = dict(enumerate(lengths)), []
    while left:
        chosen = data.draw(st.permutations(sorted(left)))[: data.draw(st.integers(1, len(left)))]
        steps.append({s: data.draw(st.integers(1, left[s])) for s in chosen})
        left = {s: count - steps[-1].get(s, 0) for s, count in left.items() if count > steps[-1].get(s, 0)}
    with threads(2):
        together = [*zip(*run(layer, sequences, steps), strict=True)]
    for (out, state), (wanted, wanted_state) in zip(together, alone, strict=True):
        assert same_bits(out, wanted)
        assert same_bits(state, wanted_state)


@pytest.mark.parametrize("layer", [Convolution(channels=20), DeltaRule(value_dim=20)], ids=["conv", "delta"])
def test_several_go_on_from_one_state_and_padding_touches_none(layer: Layer) -> None:
    first, one, other = (layer.inputs(n, seed) for n, seed in ((5, 1), (3, 2), (2, 3)))
    wanted = [run(layer, [tuple(map(torch.cat, zip(first, each, strict=True)))], [{0: 5 + len(each[0])}])[0][0][5:]
              for each in (one, other)]  # fmt: skip
    states = layer.states(5)
    layer.run(first, states, int32([0, 5]), int32([NONE]), int32([2]))
    kept, untouched = states[2].clone(), states[4].clone()
    rows = tuple(map(torch.cat, zip(one, first, other, strict=True)))
    out = layer.run(rows, states, int32([0, 3, 8, 10]), int32([2, NONE, 2]), int32([0, NONE, 3]))
    assert same_bits(out[:3], wanted[0])
    assert same_bits(out[8:], wanted[1])
    assert not out[3:8].any()
    assert same_bits(states[2], kept)
    assert same_bits(states[4], untouched)


def test_the_first_token_after_zeros_forgets_nothing_of_an_old_slot() -> None:
    """A slot may hold anything, NaN too, before it is written."""
    layer = DeltaRule()
    states = layer.states(1)
    out = layer.run(layer.inputs(1, 5), states, int32([0, 1]), int32([NONE]), int32([0]))
    assert out.isfinite().all()
    assert states.isfinite().all()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4), heads=st.integers(1, 3), width=st.sampled_from([1, 16, 33, 128]),
    dtype=st.sampled_from(FLOATS), seed=st.integers(0, 99),
)  # fmt: skip
def test_gated_rms_norm(rows: int, heads: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x, gate = (normal(rows, heads * width, dtype=dtype, seed=seed + i) for i in range(2))
    weight = normal(width, dtype=dtype, seed=seed + 2)
    each = x.double().unflatten(1, (heads, width))
    normed = each / (each.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    wanted = normed.flatten(1) * functional.silu(gate.double())
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        ops.gated_rms_norm(apart(x), apart(gate), weight, 1e-5).double(), wanted, rtol=tolerance, atol=tolerance / 10
    )


@settings(max_examples=20, deadline=None, derandomize=True)
@given(rows=st.integers(1, 4), width=st.integers(1, 70), dtype=st.sampled_from(FLOATS), seed=st.integers(0, 99))
def test_gates(rows: int, width: int, dtype: torch.dtype, seed: int) -> None:
    x, gate = (normal(rows, width, dtype=dtype, seed=seed + i) * 4 for i in range(2))
    wanted = x.double() * gate.double().sigmoid()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(ops.sigmoid_mul(x, apart(gate)).double(), wanted, rtol=tolerance, atol=1e-6)
    wanted = x.double() * functional.gelu(gate.double(), approximate="tanh")
    torch.testing.assert_close(ops.gelu_tanh_gate(x, apart(gate)).double(), wanted, rtol=tolerance, atol=1e-5)
    assert same_bits(ops.gelu_tanh_gate(x, gate), ops.gelu_tanh_gate(x, gate, out=gate.clone()))
    assert same_bits(ops.sigmoid_mul(x, gate), ops.sigmoid_mul(x, gate, out=x))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_gates_stand_alone(dtype: torch.dtype) -> None:
    both, weight = normal(6, 96, dtype=dtype), normal(24, dtype=dtype, seed=1)
    assert_rows_stand_alone(lambda x: ops.gated_rms_norm(x[:, :48], x[:, 48:], weight, 1e-5), both)
    assert_rows_stand_alone(lambda x: ops.sigmoid_mul(x[:, :48], x[:, 48:]), both)
    assert_rows_stand_alone(lambda x: ops.gelu_tanh_gate(x[:, :48], x[:, 48:]), both)
