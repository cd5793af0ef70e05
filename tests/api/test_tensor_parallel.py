"""Two ranks give the bits of one, and a rank that ends is one clear error."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from model.families import make, save, some_ids

from pybatch import LLM, RequestOutput, SamplingParams
from pybatch.engine.execution.parallel import local
from pybatch.machine import sockets
from pybatch.machine.ranks import RankError
from pybatch.model import ModelError

Open = Callable[..., LLM]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("qwen2"), tmp_path_factory.mktemp("qwen2"))


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save(make("qwen3"), tmp_path)


def opened(folder: Path, size: int, **arguments: Any) -> LLM:
    return LLM(folder, tensor_parallel_size=size, skip_tokenizer_init=True, threads=1, **arguments)


def answers(llm: LLM) -> list[Any]:
    """Tokens and log-probabilities of prompts that share a beginning, one of which has several answers."""
    beginning = some_ids(40)
    prompts = [{"prompt_token_ids": beginning[: 3 + 5 * i] + some_ids(1 + 7 * i)} for i in range(9)]
    one = SamplingParams(temperature=0.8, max_tokens=10, ignore_eos=True, logprobs=3)
    several = SamplingParams(temperature=0.8, max_tokens=10, ignore_eos=True, logprobs=3, n=3)
    outputs: list[RequestOutput] = llm.generate(prompts, [several, *[one] * 8])  # type: ignore[arg-type]
    assert not any(output.error for output in outputs)
    return [(each.token_ids, each.logprobs) for output in outputs for each in output.outputs]


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_kv_blocks": 30, "swap_space": 0.01},  # preempted
        {"quantization": "int8", "kv_cache_dtype": "int8", "num_kv_blocks": 200},
        {"quantization": "int8-weight-only", "dtype": "bfloat16", "num_kv_blocks": 200},
    ],
    ids=["float32", "int8", "bfloat16"],
)
def test_two_ranks_give_the_bits_of_one(folder: Path, tied: Path, arguments: dict[str, Any]) -> None:
    for model in [folder, tied] if arguments.get("quantization") == "int8" else [folder]:
        found = [answers(opened(model, size, seed=5, **arguments)) for size in (1, 2)]
        assert found[0] == found[1]


@pytest.mark.parametrize("family", ["qwen3_5-moe", "deepseek-v3", "gemma4-shared"])
def test_states_experts_and_latents_are_shared(family: str, tmp_path: Path) -> None:
    model = save(make(family), tmp_path)
    found = [answers(opened(model, size, seed=5, num_kv_blocks=60)) for size in (1, 2)]
    assert found[0] == found[1]


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "follower" in " ".join(each.cmdline())]


def wait_for_none() -> None:
    gc.collect()
    deadline = time.monotonic() + 30
    while children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children()


@pytest.fixture
def alone() -> Iterator[None]:
    """Without followers of others before and after."""
    wait_for_none()
    yield
    wait_for_none()


def test_a_rank_that_is_killed_is_one_clear_error_for_all(
    alone: None, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The leader names it, and each of the others has a line too."""
    llm = opened(folder, 4, num_kv_blocks=64)
    prompt = {"prompt_token_ids": some_ids(9)}
    params = SamplingParams(max_tokens=4, ignore_eos=True)
    llm.generate(prompt, params)
    killed = children()[1]
    os.kill(killed.pid, signal.SIGKILL)
    message = rf"the 4 ranks no longer work together: rank 2, process {killed.pid}, has ended with signal 9"
    for _ in range(2):
        with pytest.raises(RankError, match=message):
            llm.generate(prompt, params)
    deadline = time.monotonic() + 30
    while any(each.status() == psutil.STATUS_RUNNING for each in children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    del llm
    wait_for_none()
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("rank ")]
    assert sorted(told) == [
        f"rank {number}: the 4 ranks no longer work together: process 2 has ended" for number in (1, 3)
    ]


def test_a_rank_that_ends_before_all_are_there_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connects = "start = pickle.load(sys.stdin.buffer); Client((start.leader, start.port), authkey=start.key)"
    script = f"import pickle, sys; from multiprocessing.connection import Client; {connects}; sys.exit(7)"
    monkeypatch.setattr(local, "COMMAND", [sys.executable, "-c", script])
    monkeypatch.setattr(sockets, "JOINING", 0.5)
    with pytest.raises(RankError, match=r"the 2 ranks no longer work together: rank 1, process \d+, .* status 7"):
        opened(folder, 2)


def test_followers_end_with_what_leads_them(alone: None, folder: Path) -> None:
    llm = opened(folder, 2, num_kv_blocks=64)
    assert len(children()) == 1
    del llm
    wait_for_none()


def test_what_cannot_be_split_is_refused(alone: None, folder: Path) -> None:
    with pytest.raises(ModelError, match=r"tensor_parallel_size: expected a divisor of num_heads, 4 in \S+, got 3"):
        opened(folder, 3)
    with pytest.raises(ValueError, match="tensor_parallel_size: expected an integer from 1 to 64, got 0"):
        opened(folder, 0)
    with pytest.raises(ValueError, match="weights_cache_dir: expected None where tensor_parallel_size is above 1"):
        opened(folder, 2, weights_cache_dir="x")
