"""Settings of torch that a caller has made change no token, no bit of a log-probability, and raise nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from pybatch import LLM, SamplingParams


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


STATES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "meta": lambda: default_device("meta"),
    "with meta": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}
PROMPTS = ["One.", "Two two two two two two two two two two two two.", "3"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=6, logprobs=3, prompt_logprobs=2, ignore_eos=True),
    SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=6, logprobs=3, ignore_eos=True),
    SamplingParams(temperature=0, repetition_penalty=1.3, logit_bias={9: 2.0}, max_tokens=6, logprobs=1),
]
Answer = tuple[Any, ...]


def load(model: Path, quantization: str | None) -> LLM:
    return LLM(str(model), num_kv_blocks=64, max_num_batched_tokens=16, quantization=quantization)


def answers(llm: LLM) -> list[Answer]:
    outputs = llm.generate(PROMPTS, PARAMS, use_tqdm=False)
    return [(each.prompt_logprobs, each.outputs[0].token_ids, each.outputs[0].logprobs, each.error) for each in outputs]


@pytest.mark.parametrize("quantization", [None, "int8"])
def test_a_callers_settings_change_no_bit(tiny_model: Path, quantization: str | None) -> None:
    plain = load(tiny_model, quantization)
    expected = answers(plain)
    assert all(error is None for *_, error in expected)
    for name, state in STATES.items():
        with state():
            inside = load(tiny_model, quantization)
            assert answers(inside) == expected, f"loaded and run with {name}"
            assert answers(plain) == expected, f"run with {name}"
        assert answers(inside) == expected, f"loaded with {name}"


def test_the_settings_are_as_before_afterwards(tiny_model: Path) -> None:
    with torch.device("meta"), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        answers(load(tiny_model, None))
        assert torch.empty(1).is_meta
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert not torch.empty(1).is_meta
