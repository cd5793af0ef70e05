"""Sampling by the CUDA kernels against the CPU's op: the same tokens, and the same places in the order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import pybatch.ops
from simt.suites import OPS, suite

LOGITS = suite("test_sampling").logits_of


def logits_of(kind: str, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "flat":  # more than the kernel can list are near the largest
        return torch.rand(vocab, generator=generator) / 8
    if kind == "not numbers":
        x = LOGITS("normal", vocab, seed)
        x[torch.rand(vocab, generator=generator) < 0.3] = torch.nan
        x[torch.rand(vocab, generator=generator) < 0.3] = -torch.inf
        return x
    return LOGITS(kind, vocab, seed)


KINDS = ["normal", "ties", "equal", "flat", "peaked", "banned", "signed zeros", "not numbers"]


def sampled(ops: object, logits: Tensor, settings: Tensor, top_k: Tensor, places: Tensor) -> Tensor:
    temperature, top_p, min_p = settings.float().t().contiguous()
    return ops.sample(logits, temperature, top_k, top_p, min_p, places + 5, places * 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    data=st.data(), kind=st.sampled_from(KINDS), seed=st.integers(0, 99), shift=st.integers(0, 3),
    vocab=st.one_of(st.integers(1, 300), st.sampled_from([4095, 4096, 4097, 9001, 20000])),
)  # fmt: skip
def test_the_tokens_are_the_cpus(data: st.DataObject, kind: str, seed: int, shift: int, vocab: int) -> None:
    rows = 3
    logits = torch.empty(rows, vocab + shift)[:, shift:]  # rows begin anywhere among sixteen bytes
    for row in range(rows):
        logits[row] = logits_of(kind, vocab, seed + row)
    cuts = st.tuples(
        st.sampled_from([0.0, 0.3, 1.0, 4.0]), st.sampled_from([1e-6, 0.5, 0.9, 0.999, 1.0]),
        st.sampled_from([0.0, 0.0, 0.01, 1.0]),
    )  # fmt: skip
    count = st.one_of(st.sampled_from([0, 1, 50, 700, 4500]), st.integers(max(1, vocab - 1), vocab + 1))
    values = torch.tensor([data.draw(cuts) for _ in range(rows)])
    top_k = torch.tensor([data.draw(count) for _ in range(rows)])
    places = torch.arange(rows) + seed
    tokens = sampled(OPS, logits, values, top_k, places)
    assert torch.equal(tokens, sampled(pybatch.ops, logits, values, top_k, places))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 99), num_top=st.sampled_from([0, 1, 20, 600, 4097]),
    vocab=st.one_of(st.integers(1, 300), st.sampled_from([4096, 4099, 9001])),
)  # fmt: skip
def test_ranks_and_the_largest_are_the_cpus(kind: str, seed: int, num_top: int, vocab: int) -> None:
    logits, tokens = logits_of(kind, vocab, seed)[None], torch.tensor([seed % vocab])
    found = OPS.token_logprobs(logits, tokens, min(num_top, vocab))
    wanted = pybatch.ops.token_logprobs(logits, tokens, min(num_top, vocab))
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(found[2], wanted[2])
    torch.testing.assert_close(found[0], wanted[0])
    torch.testing.assert_close(found[3], wanted[3])


@pytest.mark.parametrize("kind", ["normal", "flat"])
def test_a_vocabulary_of_128256(kind: str) -> None:
    logits = torch.stack([logits_of(kind, 128256, row) for row in range(3)])
    values, places = torch.tensor([[1.0, 1.0, 0.0], [0.8, 0.9, 0.0], [1.0, 0.95, 0.02]]), torch.arange(3)
    top_k = torch.tensor([50, 0, 3000])
    tokens = sampled(OPS, logits, values, top_k, places)
    assert torch.equal(tokens, sampled(pybatch.ops, logits, values, top_k, places))
