from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_command import Cli

from pybatch import LLM, SamplingParams
from pybatch.engine import Engine, EngineConfig
from pybatch.model import Decoder, load_model
from pybatch.tune import autotune
from pybatch.tune.autotune import Tuned, Tuning, tuned

Seconds = Callable[[int, int], float]  # of tokens and threads


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load_model(tiny_model, skip_tokenizer=True).decoder


@pytest.fixture(autouse=True)
def own_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Its cache and threads are its own, and it has two cores."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(autotune, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Seconds], Callable[[], float]]:
    """Steps take what is made up for their tokens and threads, by a clock of their own."""
    now = [0.0]
    step = Engine.step

    def install(seconds: Seconds) -> Callable[[], float]:
        def timed(self: Engine) -> Any:
            before = self.metrics.step_tokens
            outputs = step(self)
            now[0] += seconds(self.metrics.step_tokens - before, torch.get_num_threads())
            return outputs

        monkeypatch.setattr(Engine, "step", timed)
        return lambda: now[0]

    return install


def saturating(tokens: int, threads: int) -> float:
    """64 tokens cost what one costs, and each more as much again; a second thread halves it."""
    return 1e-3 * max(1, tokens / 64) * 2 / threads


def test_the_smallest_settings_are_chosen_that_saturate_the_machine(
    decoder: Decoder, machine: Callable[[Seconds], Callable[[], float]]
) -> None:
    found = Tuning(decoder, EngineConfig(), None, clock=machine(saturating)).run()
    assert (found.max_num_seqs, found.max_num_batched_tokens, found.threads) == (64, 128, 2)
    assert found.speculative_config is None  # the batch saturates the machine
    assert list(found.why) == ["threads", "max_num_seqs", "max_num_batched_tokens", "speculative_config"]
    assert "64: 64,000" in found.why["max_num_seqs"]
    assert str(found).startswith("Tuned: threads 2 (")
    assert found.seconds < 8


def test_drafts_are_taken_where_more_tokens_cost_little(
    decoder: Decoder, machine: Callable[[Seconds], Callable[[], float]]
) -> None:
    found = Tuning(decoder, EngineConfig(max_num_seqs=4), None, clock=machine(saturating)).run()
    assert (found.max_num_seqs, found.max_num_batched_tokens) == (4, 128)
    assert "suffix" in str(found.speculative_config)
    assert "0% of the time of the first" in found.why["speculative_config"]
    dear = Tuning(decoder, EngineConfig(max_num_seqs=64), None, clock=machine(saturating)).run()
    assert dear.speculative_config is None
    assert "100% of the time of the first" in dear.why["speculative_config"]


def test_it_ends_in_time_on_a_slow_machine(decoder: Decoder, machine: Callable[[Seconds], Callable[[], float]]) -> None:
    clock = machine(lambda tokens, threads: 0.2 + 0.01 * tokens)
    found = Tuning(decoder, EngineConfig(), None, clock=clock).run()
    assert clock() < 10
    assert found.max_num_seqs >= 64  # the default, where more were still better
    assert "no time for more" in found.why["max_num_seqs"]


def test_what_is_given_stays(decoder: Decoder, machine: Callable[[Seconds], Callable[[], float]]) -> None:
    config = EngineConfig(max_num_seqs=8, max_num_batched_tokens=200, speculative_config={"method": "suffix"})
    found = Tuning(decoder, config, 1, clock=machine(saturating)).run()
    assert found.settings() == {}


def test_a_pool_without_room_is_no_endless_try(decoder: Decoder) -> None:
    tuning = Tuning(decoder, EngineConfig(), 1)
    engine = Engine(decoder, None, EngineConfig(num_kv_blocks=6, predict_lengths=False))
    assert tuning._decode(engine, 64) == math.inf
    assert not engine.has_unfinished()


def test_it_is_measured_once_and_kept(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def run(self: Tuning) -> Tuned:
        made.append(self)
        return Tuned(32, 256, 1, None, {"max_num_seqs": "so", "threads": "so"}, 1.0)

    monkeypatch.setattr(Tuning, "run", run)
    first, again = (tuned(decoder, EngineConfig(), None) for _ in range(2))
    assert first == again
    assert first.settings() == {"max_num_seqs": 32, "threads": 1}
    assert torch.get_num_threads() == 1
    tuned(decoder, EngineConfig(max_num_batched_tokens=64), None)
    assert len(made) == 2
    Path(str(autotune.cache_folder()), autotune.FILE).write_text("{}")
    tuned(decoder, EngineConfig(), None)
    assert len(made) == 3


def test_a_tuned_model_answers_as_any_other(tiny_model: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "SECONDS", 0.3)
    params = SamplingParams(max_tokens=8, seed=1)
    llm = LLM(tiny_model, num_kv_blocks=64, tune=True, max_num_seqs=3)
    assert llm.engine.config.max_num_seqs == 3
    assert llm.session.tuned is not None
    assert llm.engine.config.max_num_batched_tokens == llm.session.tuned.max_num_batched_tokens
    plain = LLM(tiny_model, num_kv_blocks=64)
    prompts = ["abab" * 8, "Once"]
    answers = [each.generate(prompts, params, use_tqdm=False) for each in (llm, plain)]
    assert [o.outputs[0].token_ids for o in answers[0]] == [o.outputs[0].token_ids for o in answers[1]]
    with pytest.raises(ValueError, match="tune: expected True or False, got 1"):
        LLM(tiny_model, tune=1)
    ran = cli("run", "-o", "-", "/dev/null", "--tune", "--model", tiny_model, "--tensor-parallel-size", "2")
    assert (ran.code, "tune: expected False" in ran.err) == (2, True)
