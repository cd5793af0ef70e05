"""Ranks that hold a model together have the logits of one, bit for bit, whatever its layers are like."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from threading import Barrier
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from model.checkpoints.test_quantized import CASES, made
from model.families import make, save, some_ids
from model.paged import logits_of
from torch import Tensor

from pybatch.machine.ranks import Place, Ranks, Stages
from pybatch.model import Decoder, load_model
from pybatch.model.batch import ForwardBatch
from pybatch.model.stage import in_parts

IDS = some_ids(40)
T = TypeVar("T")


class Thread(Ranks):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, barrier: Barrier, parts: list[Tensor | None]) -> None:
        self.rank, self.size = rank, len(parts)
        self._barrier, self._parts = barrier, parts

    def gather(self, part: Tensor) -> Tensor:
        self._parts[self.rank] = part.clone()
        self._barrier.wait(300)
        whole = torch.cat([each for each in self._parts if each is not None], 1)
        self._barrier.wait(300)
        return whole


class ThreadStage(Stages):
    """A stage that is a thread of this process."""

    def __init__(self, stage: int, queues: list[Queue[Tensor]]) -> None:
        self.stage, self.count = stage, len(queues) + 1
        self._queues = queues

    def send(self, rows: Tensor) -> None:
        self._queues[self.stage].put(rows.clone())

    def receive(self, out: Tensor) -> None:
        out.copy_(self._queues[self.stage - 1].get(timeout=300))


def of_ranks(call: Callable[[Ranks | None, Stages | None], T], size: int, stages: int = 1) -> list[T]:
    """What each rank of the last stage finds."""
    barriers = [Barrier(size) for _ in range(stages)]
    parts = [list[Tensor | None]([None] * size) for _ in range(stages)]
    queues = [[Queue[Tensor]() for _ in range(stages - 1)] for _ in range(size)]

    def run(number: int) -> T:
        place = Place(number, size, stages)
        rank, stage = place.rank, place.stage
        try:
            ranks = Thread(rank, barriers[stage], parts[stage]) if size > 1 else None
            own = ThreadStage(stage, queues[rank]) if stages > 1 else None
            return call(ranks, own)
        except BaseException:
            barriers[stage].abort()
            raise

    with ThreadPoolExecutor(size * stages) as threads:
        return list(threads.map(run, range(size * stages)))[:size]


# Heads that are filled up, several kinds of norms, biases (of the projection to the vocabulary too), fused tensors of
# both kinds, layers in parallel, MLPs without gates, adjacent pairs, scales and caps, matrices by their inputs; experts
# of all kinds, sinks, linear attention, norms over all heads; inputs of tokens' own, shared keys, latents.
FAMILIES = [
    "llama-heads-of-20",
    "qwen3-heads-of-12",
    "gemma2",
    "gemma4",
    "phi",
    "phi3",
    "gpt_neox",
    "glm4",
    "cohere",
    "starcoder2",
    "gpt2",
    "gptj",
    "falcon-grouped",
    "apertus",
    "granitemoehybrid-dense",
    "stablelm-own-norms",
    "mixtral",
    "qwen2-moe",
    "qwen3-moe",
    "glm4-moe",
    "gpt_oss",
    "qwen3_5-moe",
    "qwen3_next",
    "olmo2",
    "olmo3",
    "olmoe",
    "gemma4-shared",
    "gemma4-keys-as-values",
    "deepseek-v2",
    "deepseek-v3",
    "glm4-moe-lite",
    "youtu",
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_two_ranks_have_the_bits_of_one(family: str, quantization: str | None, tmp_path: Path) -> None:
    directory = save(make(family), tmp_path)
    expect_the_bits_of_one(directory, quantization)


# Of the kinds of norms of queries and keys, and of tensors that have both; each head of keys is held by two ranks.
@pytest.mark.parametrize(
    "family", ["llama3", "falcon-grouped", "phi3", "stablelm-own-norms", "olmo2", "qwen3-heads-of-12"]
)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_four_ranks_share_two_heads_of_keys(family: str, quantization: str | None, tmp_path: Path) -> None:
    expect_the_bits_of_one(save(make(family), tmp_path), quantization, ranks=4)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "phi", "mixtral", "qwen3_next", "deepseek-v3"])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_stages_have_the_bits_of_one(family: str, quantization: str | None, tmp_path: Path) -> None:
    directory = save(make(family), tmp_path)
    expect_the_bits_of_one(directory, quantization, ranks=1, stages=2)


def test_stages_of_ranks_have_the_bits_of_one(tmp_path: Path) -> None:
    expect_the_bits_of_one(save(make("qwen2"), tmp_path), None, ranks=2, stages=2)


@given(st.data())
def test_a_step_goes_in_parts_of_whole_sequences(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 50), min_size=1, max_size=30))
    most, tokens = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 64))
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    total = int(starts[-1])
    batch = ForwardBatch(
        token_ids=torch.arange(total), positions=torch.arange(total), slots=torch.arange(total),
        block_tables=torch.arange(len(lengths))[:, None], query_start=starts, seq_lens=torch.tensor(lengths),
        logits_rows=torch.arange(total),
    )  # fmt: skip
    parts = in_parts(batch, most, tokens)
    assert len(parts) <= max(1, min(most, total // tokens))
    assert torch.equal(torch.cat([part.token_ids for *_, part in parts]), batch.token_ids)
    assert torch.equal(torch.cat([part.query_start[:-1] + first for first, _, part in parts]), starts[:-1])
    for name in ("seq_lens", "block_tables"):
        assert torch.equal(torch.cat([getattr(part, name) for *_, part in parts]), getattr(batch, name))
    for first, last, part in parts:
        assert len(part.token_ids) == last - first == part.query_start[-1] == part.seq_lens.sum()


@pytest.mark.parametrize("kind", ["gptq-64", "awq", "w8a8", "fp8-blocks"])
def test_two_ranks_share_a_quantised_checkpoint(kind: str, tmp_path: Path) -> None:
    made(tmp_path, CASES[kind])
    expect_the_bits_of_one(tmp_path, None)


def expect_the_bits_of_one(directory: Path, quantization: str | None, ranks: int = 2, stages: int = 1) -> None:
    alone: Decoder = load_model(directory, quantization=quantization, skip_tokenizer=True).decoder
    expected = logits_of(alone, IDS)

    def logits(ranks: Ranks | None, stages: Stages | None) -> Tensor:
        loaded = load_model(directory, quantization=quantization, skip_tokenizer=True, ranks=ranks, stages=stages)
        return logits_of(loaded.decoder, IDS, [17, 1, 22])

    for found in of_ranks(logits, ranks, stages):
        assert torch.equal(found, expected)
