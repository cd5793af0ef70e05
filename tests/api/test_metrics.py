"""llm.metrics() and alerts."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import pytest

import pybatch
from pybatch import LLM, Alert, AlertLimits, AsyncLLM, SamplingParams
from pybatch.api.alerts import Alerts
from pybatch.engine import Engine, EngineConfig
from pybatch.model import load_model

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=64, max_num_seqs=4, threads=1)


def test_a_snapshot_has_the_engine_and_the_machine_and_stays_as_it_is(llm: LLM) -> None:
    before = llm.metrics()
    llm.generate(["one", "two two"], GREEDY, use_tqdm=False)
    after = llm.metrics()
    assert after.total.requests - before.total.requests == 2
    assert after.total.output_tokens - before.total.output_tokens == 16
    assert (after.now.running, after.now.waiting, after.now.kv_blocks_used) == (0, 0, 0)
    assert (after.now.kv_blocks, after.now.kv_usage) == (64, 0.0)
    assert 0 < after.machine.process_memory < after.machine.memory_total
    assert isinstance(after, pybatch.Metrics)
    with pytest.raises(FrozenInstanceError):
        after.at = 0.0  # type: ignore[misc]


def test_a_snapshot_is_json(tiny_model: Path) -> None:
    fields = json.loads(
        json.dumps(LLM(tiny_model, num_kv_blocks=8, max_model_len=64).metrics().to_json(), allow_nan=False)
    )
    assert fields["total"]["ttft_p50"] is None
    assert fields["now"]["kv_blocks"] == 8
    assert fields["gpus"] == [] or fields["gpus"][0]["name"]


def test_a_snapshot_can_be_taken_while_steps_run(llm: LLM) -> None:
    running = []
    for output in llm.stream(
        ["word " * 20] * 4, SamplingParams(temperature=0, max_tokens=20, ignore_eos=True), partial=True
    ):
        if not output.finished:
            running.append(llm.metrics().now)
    assert max(now.running for now in running) == 4
    assert max(now.kv_usage for now in running) > 0.1


def test_async_llm_has_them_too(tiny_model: Path) -> None:
    async def ask() -> tuple[int, list[Alert]]:
        seen: list[Alert] = []
        async with AsyncLLM(tiny_model, num_kv_blocks=64, threads=1) as llm:
            llm.on_alert(seen.append, AlertLimits(kv_usage=1e-9))
            async for _ in llm.generate("one", GREEDY):
                pass
            return llm.metrics().total.requests, seen

    requests, seen = asyncio.run(ask())
    assert requests == 1
    assert [alert.kind for alert in seen] == ["kv_usage"]


# ---- alerts ----


class Watched:
    """An engine with a clock and memory that the test moves."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.now, self.free = engine, 0.0, 2**40
        self.alerts = Alerts(engine, clock=lambda: self.now, free=lambda: self.free)
        self.seen: list[Alert] = []
        self.alerts.callbacks.append(self.seen.append)

    def look(self, after: float = 1.0) -> list[str]:
        """What is new then."""
        self.now += after
        count = len(self.seen)
        self.alerts.look()
        return [alert.kind for alert in self.seen[count:]]


@pytest.fixture
def watched(tiny_model: Path) -> Watched:
    decoder = load_model(tiny_model, skip_tokenizer=True).decoder
    config = EngineConfig(num_kv_blocks=8, max_num_seqs=8, predict_lengths=False, enable_prefix_caching=False)
    return Watched(Engine(decoder, None, config))


def add(engine: Engine, count: int, prompt: int = 20, outputs: int = 60) -> None:
    params = SamplingParams(temperature=0, max_tokens=outputs, ignore_eos=True, detokenize=False)
    for i in range(count):
        engine.add_request(f"{engine.metrics.steps}-{i}", [2 + i] * prompt, params)


def test_a_full_cache_and_thrash_are_told_of_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    engine = watched.engine
    watched.alerts.limits = AlertLimits(preemptions=0.02)
    add(engine, 6)
    kinds: list[str] = []
    with caplog.at_level(logging.INFO):
        while engine.has_unfinished():
            engine.step()
            kinds += watched.look()
        assert {"kv_usage", "preemptions"} <= set(kinds)
        lines = [record.getMessage() for record in caplog.records if record.name == "pybatch.api.alerts"]
        assert sum(line.startswith("kv_usage: ") for line in lines) == 1
        assert sum(line.startswith("preemptions: ") for line in lines) == 1
    alert = next(alert for alert in watched.seen if alert.kind == "kv_usage")
    assert alert.value >= alert.limit == 0.98
    assert watched.look() == []


def test_what_has_recovered_is_told_of_again_but_logged_once(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        watched.free = 2**20
        assert watched.look() == ["memory"]
        assert watched.look() == []
        watched.free = 260 * 2**20  # just within the limit
        assert watched.look() == []
        watched.free = 2**20
        assert watched.look() == []
        watched.free = 2**40
        assert watched.look() == []
        watched.free = 2**20
        assert watched.look() == ["memory"]
    assert sum("memory: " in record.getMessage() for record in caplog.records) == 1


def test_a_process_that_may_open_no_more_files_answers_all_the_same(tiny_model: Path) -> None:
    """As a server with a thousand connections: what a step has brought is not lost by a look at the memory."""
    llm = LLM(tiny_model, num_kv_blocks=64, threads=1)

    def refused() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    llm.session.alerts._free = refused
    (output,) = llm.generate("one", replace(GREEDY, max_tokens=1), use_tqdm=False)
    assert output.error is None
    assert llm.session.idle


def test_a_queue_that_stands_still_is_told_of(watched: Watched) -> None:
    engine = watched.engine
    assert watched.look(1000) == []  # nobody waits
    add(engine, 1, prompt=100, outputs=20)
    add_later = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)
    engine.step()
    engine.add_request("later", [5] * 100, add_later)
    engine.step()
    assert engine.num_waiting == 1
    watched.look()
    assert "stalled" not in watched.look(30)
    assert "stalled" in watched.look(40)
    while engine.has_unfinished():
        engine.step()
    assert "stalled" not in watched.look(1000)


def test_the_first_that_wait_after_a_quiet_hour_have_not_waited_for_that_hour(watched: Watched) -> None:
    engine = watched.engine
    add(engine, 1)
    while engine.has_unfinished():
        engine.step()
    assert watched.look() == []
    add(engine, 2, prompt=100, outputs=20)
    assert engine.num_waiting == 2
    assert "stalled" not in watched.look(3600)
    assert "stalled" in watched.look(70)


def test_it_looks_once_a_second_and_limits_can_be_left_out(watched: Watched) -> None:
    watched.free = 2**20
    watched.alerts.limits = AlertLimits(memory=None, kv_usage=None, preemptions=None, stalled=None)
    assert watched.look(5) == []
    watched.alerts.limits = AlertLimits()
    assert watched.look(0.5) == []
    assert watched.look(0.6) == ["memory"]


def test_a_callback_that_fails_stops_nothing(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    def fail(alert: Alert) -> None:
        raise RuntimeError("no such pager")

    llm.session.alerts._next = 0.0
    llm.on_alert(fail, AlertLimits(kv_usage=1e-9))
    (output,) = llm.generate("one", GREEDY, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 8
    assert "an alert's callback failed" in caplog.text
    llm.session.alerts.callbacks.clear()


@pytest.mark.parametrize("limits", [{"kv_usage": 0}, {"stalled": -1}, {"memory": float("nan")}], ids=str)
def test_limits_are_positive(limits: dict[str, Any]) -> None:
    (name,) = limits
    with pytest.raises(ValueError, match=f"{name}: expected a number above 0 or None"):
        AlertLimits(**limits)
