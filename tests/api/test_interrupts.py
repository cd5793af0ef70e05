from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from pybatch import LLM, RequestOutput, SamplingParams


def test_what_finished_in_the_interrupted_step_is_yielded_first(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = LLM(tiny_model, num_kv_blocks=128, max_num_seqs=4)
    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    run, steps = llm.engine.step, iter(range(1, 100))

    def step() -> Any:
        outputs = run()
        if next(steps) == params.max_tokens:  # in which the first four finish
            signal.raise_signal(signal.SIGINT)
        return outputs

    monkeypatch.setattr(llm.engine, "step", step)
    outputs = list[RequestOutput]()

    def answer() -> None:
        for output in llm.stream([f"Say {i}" for i in range(8)], params):
            outputs.append(output)

    with pytest.raises(KeyboardInterrupt):
        answer()
    assert sorted(output.request_id for output in outputs) == ["0", "1", "2", "3"]
    assert all(output.error is None for output in outputs)
    assert llm.session.idle


def test_no_step_follows_the_one_in_which_a_ctrl_c_came(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = LLM(tiny_model, num_kv_blocks=128, max_num_seqs=4)
    run, steps = llm.engine.step, list[int]()

    def step() -> Any:
        outputs = run()
        steps.append(len(steps))
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return outputs

    monkeypatch.setattr(llm.engine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["Say it"], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), use_tqdm=False)
    assert len(steps) == 3
    assert llm.session.idle
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
