"""Ranks that hold a model together have the logits of one, bit for bit, whatever its layers are like."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from model.checkpoints.test_quantized import CASES, made
from model.families import make, save, some_ids
from model.paged import logits_of
from torch import Tensor

from pybatch.machine.ranks import Ranks
from pybatch.model import Decoder, ModelError, load_model

IDS = some_ids(40)


class Thread(Ranks):
    """A rank that is a thread of this process."""

    def __init__(self, rank: int, barrier: Barrier, parts: list[Tensor | None]) -> None:
        self.rank, self.size = rank, len(parts)
        self._barrier, self._parts = barrier, parts

    def gather(self, part: Tensor) -> Tensor:
        self._parts[self.rank] = part.clone()
        self._barrier.wait(60)
        whole = torch.cat([each for each in self._parts if each is not None], 1)
        self._barrier.wait(60)
        return whole


def logits_of_ranks(directory: Path, size: int, quantization: str | None) -> list[Tensor]:
    barrier, parts = Barrier(size), list[Tensor | None]([None] * size)

    def run(rank: int) -> Tensor:
        try:
            ranks = Thread(rank, barrier, parts)
            loaded = load_model(directory, quantization=quantization, skip_tokenizer=True, ranks=ranks)
            return logits_of(loaded.decoder, IDS, [17, 1, 22])
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(run, range(size)))


# Heads that are filled up, several kinds of norms, biases (of the projection to the vocabulary too), fused tensors of
# both kinds, layers in parallel, MLPs without gates, adjacent pairs, scales and caps, matrices by their inputs; experts
# of all kinds, sinks, linear attention.
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
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_two_ranks_have_the_bits_of_one(family: str, quantization: str | None, tmp_path: Path) -> None:
    directory = save(make(family), tmp_path)
    expect_the_bits_of_one(directory, quantization)


@pytest.mark.parametrize("kind", ["gptq-64", "awq", "w8a8", "fp8-blocks"])
def test_two_ranks_share_a_quantised_checkpoint(kind: str, tmp_path: Path) -> None:
    made(tmp_path, CASES[kind])
    expect_the_bits_of_one(tmp_path, None)


def expect_the_bits_of_one(directory: Path, quantization: str | None) -> None:
    alone: Decoder = load_model(directory, quantization=quantization, skip_tokenizer=True).decoder
    expected = logits_of(alone, IDS)
    for logits in logits_of_ranks(directory, 2, quantization):
        assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        (
            "olmo2",
            "expected 1 for Olmo2ForCausalLM, whose attention has norms over all heads, got 2",
        ),
        ("gemma4-shared", "expected 1 for Gemma4ForCausalLM, whose layers have inputs of tokens' own, got 2"),
    ],
)
def test_layers_that_cannot_be_shared_are_refused_by_name(family: str, why: str, tmp_path: Path) -> None:
    directory = save(make(family), tmp_path)
    with pytest.raises(ModelError, match=f"tensor_parallel_size: {why}"):
        load_model(directory, skip_tokenizer=True, ranks=Thread(0, Barrier(2), [None, None]))
