"""A GPU that is not the thread's current one is made so for all that an engine does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import pytest
import torch
from engine.runs import run, some_prompt

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.execution.step_inputs import StepInputs
from pybatch.model import Decoder


class Accelerator:
    """Stands for torch's: each thread has a device, at first 0."""

    def __init__(self) -> None:
        self._of_thread = threading.local()

    @property
    def current(self) -> int:
        return getattr(self._of_thread, "index", 0)

    @contextmanager
    def device_index(self, index: int | None) -> Iterator[None]:
        before = self.current
        self._of_thread.index = before if index is None else index
        yield
        self._of_thread.index = before


@pytest.mark.parametrize("index", [None, 1])
def test_an_engine_runs_and_captures_on_its_own_device(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, index: int | None
) -> None:
    accelerator, found = Accelerator(), dict[str, set[int]]()
    monkeypatch.setattr(torch.accelerator, "device_index", accelerator.device_index)

    def watch(owner: type, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: object, **kwargs: object) -> object:
            found.setdefault(name, set()).add(accelerator.current)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, watched)

    for owner, name in ((Decoder, "forward"), (StepInputs, "fill"), (StepInputs, "__init__"), (Sampler, "sample")):
        watch(owner, name)
    there = copy(decoder)
    there.device = torch.device("cpu") if index is None else torch.device("cpu", index)
    engine = Engine(there, None, EngineConfig(num_kv_blocks=64))
    outputs: list[object] = []

    def work() -> None:
        prompts = [some_prompt(5), some_prompt(20)]
        outputs.extend(run(engine, prompts, SamplingParams(temperature=0, max_tokens=4, detokenize=False)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(outputs) == 2
    assert found == {key: {index or 0} for key in ("forward", "fill", "__init__", "sample")}
    assert accelerator.current == 0
