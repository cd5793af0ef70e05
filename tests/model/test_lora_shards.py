"""Processes that hold a model together have its adapters together, with the bits of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from model.families import make, save
from model.test_lora import PROMPTS, load, make_adapters, run
from model.test_shards import of_ranks
from torch import Tensor

from pybatch.machine.ranks import Ranks, Stages

# Heads that are filled up, layers in parallel, fused tensors, caps, inputs' order, experts, linear attention.
FAMILIES = ["llama-heads-of-20", "gptj", "phi3", "gemma2", "starcoder2", "qwen2-moe", "qwen3_5", "qwen3_next"]
FAMILIES += ["gemma4-shared", "deepseek-v3"]


@pytest.mark.parametrize("form", [{}, {"quantization": "int8", "dtype": "bfloat16"}], ids=str)
@pytest.mark.parametrize("name", FAMILIES)
def test_two_ranks_have_the_bits_of_one(tmp_path: Path, name: str, form: dict[str, Any]) -> None:
    expect_the_bits_of_one(tmp_path, name, 2, 1, **form)


@pytest.mark.parametrize("sizes", [(1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("name", ["gemma2", "qwen2-moe"])
def test_stages_have_the_bits_of_one(tmp_path: Path, name: str, sizes: tuple[int, int]) -> None:
    expect_the_bits_of_one(tmp_path, name, *sizes)


@pytest.mark.parametrize("name", ["llama3", "olmo2"])
def test_ranks_may_share_heads_of_keys(tmp_path: Path, name: str) -> None:
    expect_the_bits_of_one(tmp_path, name, 4, 1)


def expect_the_bits_of_one(folder: Path, name: str, size: int, count: int, **form: Any) -> None:
    model = make(name)
    path = save(model, folder / "model")
    paths = [each for each, _ in make_adapters(model, folder, 2)]
    chosen = [0, 2] if "qwen3_5" in name or "qwen3_next" in name else range(4)  # whose caches here are of two sequences
    prompts, slots = [PROMPTS[i] for i in chosen], [(0, -1, 1, 0)[i] for i in chosen]
    expected = run(load(path, paths, **form), prompts, slots)

    def logits(ranks: Ranks | None, stages: Stages | None) -> list[Tensor]:
        return run(load(path, paths, ranks=ranks, stages=stages, **form), prompts, slots)

    for found in of_ranks(logits, size, count):
        assert all(map(torch.equal, found, expected))
