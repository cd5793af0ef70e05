"""Stages give the bits of one process, here and on a Ray cluster, and one that ends is one clear error."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from api.test_tensor_parallel import answers, opened
from model.families import make, save

from pybatch import LLM, SamplingParams
from pybatch.machine.ranks import RankError
from pybatch.model import ModelError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(make("qwen2"), tmp_path_factory.mktemp("qwen2"))


@pytest.mark.parametrize(
    "arguments", [{"swap_space": 0.01, "num_kv_blocks": 30}, {"quantization": "int8", "kv_cache_dtype": "int8"}]
)
def test_stages_give_the_bits_of_one(folder: Path, arguments: dict[str, Any]) -> None:
    alone = answers(opened(folder, 1, seed=5, **arguments))
    assert answers(opened(folder, 1, seed=5, pipeline_parallel_size=2, **arguments)) == alone


def test_hidden_states_come_from_the_last_stage(folder: Path) -> None:
    prompts = [{"prompt_token_ids": list(range(3, 20 + 30 * i))} for i in range(4)]
    found = []
    for size in (1, 2):
        llm = opened(folder, 1, pipeline_parallel_size=size, num_kv_blocks=64)
        found.append([output.outputs.embedding for output in llm.embed(prompts)])
    assert found[0] == found[1]


def test_what_cannot_be_split_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="pipeline_parallel_size: expected at most 3, the layers of "):
        opened(folder, 1, pipeline_parallel_size=4)
    with pytest.raises(ValueError, match="distributed_executor_backend: expected 'mp' or 'ray', got 'x'"):
        LLM(folder, distributed_executor_backend="x")


def test_ranks_are_started_on_the_machines_of_a_ray_cluster(
    cluster: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    llm = opened(folder, 1, pipeline_parallel_size=2, distributed_executor_backend="ray", seed=5, num_kv_blocks=64)
    (actor,) = (each for each in ray._private.state.actors().values() if each["State"] == "ALIVE")
    assert actor["Address"]["NodeID"] != ray.get_runtime_context().get_node_id()
    assert answers(llm) == answers(opened(folder, 1, seed=5, num_kv_blocks=64))
    os.kill(actor["Pid"], signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(RankError, match=r"the 2 ranks no longer work together: rank 1, on \S+, has ended: "):
            llm.generate({"prompt_token_ids": [3, 4]}, SamplingParams(max_tokens=2))
    del llm
    gc.collect()
    assert not ray.is_initialized()
