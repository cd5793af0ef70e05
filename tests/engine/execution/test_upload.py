"""A device apart gets a step's inputs in two copies before the model runs, and nothing behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from engine.runs import MakeEngine, run, some_prompt

from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.computing import StepComputer
from pybatch.engine.execution import step_inputs, upload
from pybatch.engine.execution.decode_graphs import DecodeGraphs
from pybatch.engine.execution.upload import Mirror, Upload
from pybatch.model import Decoder

CPU = torch.device("cpu")
PARAMS = [
    SamplingParams(temperature=0, max_tokens=6),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.9, min_p=0.01, seed=3, max_tokens=9, logprobs=2),
    SamplingParams(temperature=0.8, repetition_penalty=1.2, frequency_penalty=0.5, max_tokens=9),
    SamplingParams(temperature=0.8, seed=5, n=3, max_tokens=5, prompt_logprobs=1),
    SamplingParams(temperature=0, min_tokens=4, stop_token_ids=list(range(1, 200)), max_tokens=6, logprobs=0),
    SamplingParams(temperature=1.0, allowed_token_ids=[5, 6, 7, 40], logit_bias={5: 3.0}, max_tokens=4, seed=1),
    SamplingParams(temperature=0, use_beam_search=True, best_of=3, n=2, max_tokens=5, presence_penalty=1.0),
    SamplingParams(temperature=0, use_beam_search=True, best_of=2, max_tokens=5),
]


class Apart(Mirror):
    """As on a GPU: the device has memory of its own, and what is not sent is not there."""

    log: list[str]

    def __init__(self, words: int, device: torch.device) -> None:
        super().__init__(words, device)
        self.there = torch.full((words,), -1)

    def wait(self) -> None:
        self.host.fill_(-1)  # what was there may be written over from now on

    def send(self, words: int) -> None:
        self.log.append("send")
        self.there[:words] = self.host[:words]


class LikeStepInputs(Apart):
    """Whose block tables stay."""

    def wait(self) -> None:
        pass


def answers(outputs: list[RequestOutput]) -> list[Any]:
    return [(each.prompt_logprobs, [(o.token_ids, o.logprobs) for o in each.outputs]) for each in outputs]


def test_a_steps_inputs_go_before_the_model_runs(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [some_prompt(5 + 7 * i) for i in range(len(PARAMS))]
    wanted = answers(run(make_engine(max_num_batched_tokens=64), prompts, PARAMS))

    log: list[str] = []
    monkeypatch.setattr(Apart, "log", log, raising=False)
    monkeypatch.setattr(upload, "Mirror", Apart)
    monkeypatch.setattr(step_inputs, "Mirror", LikeStepInputs)

    def watch(owner: Any, name: str) -> None:
        function = getattr(owner, name)

        def watched(*arguments: Any, **named: Any) -> Any:
            if named.get("non_blocking"):  # from pinned memory
                return function(*arguments, **named)
            log.append(f"{name}(")
            result = function(*arguments, **named)
            log.append(f"){name}")
            return result

        monkeypatch.setattr(owner, name, watched)

    watch(StepComputer, "compute")
    watch(Decoder, "forward")
    for name in ("tensor", "as_tensor", "from_numpy"):
        watch(torch, name)
    watch(torch.Tensor, "to")
    monkeypatch.setattr(DecodeGraphs, "takes", lambda self, chunks: False)
    assert answers(run(make_engine(max_num_batched_tokens=64), prompts, PARAMS)) == wanted

    steps = [step.split(")compute")[0] for step in " ".join(log).split("compute(")[1:]]
    assert len(steps) > 8
    for before, behind in (step.split("forward( )forward") for step in steps):
        assert before.split().count("send") == 2
        assert not behind.strip()


def test_an_upload_grows_while_it_is_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Apart, "log", [], raising=False)
    monkeypatch.setattr(upload, "Mirror", Apart)
    uploads = Upload(CPU)
    for size in (1, 5000, 3, 30_000, 0):
        ints, floats = uploads.ints(range(size)), uploads.floats([0.1] * size)
        more = uploads.add(np.arange(7, dtype=np.int64))
        uploads.send()
        assert ints.tolist() == list(range(size))
        assert torch.equal(floats, torch.full((size,), 0.1))
        assert more.tolist() == list(range(7))
        uploads.send()  # nothing new
    assert Apart.log.count("send") == 5 + 2
