from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from model.families import make, save

from pybatch import SamplingParams
from pybatch.engine import Engine, EngineConfig
from pybatch.engine.kv_policies import HeavyHitters, SnapKV, StreamingLLM
from pybatch.engine.standing import Standing
from pybatch.model import Decoder, load_model
from pybatch.tune.simulator import SimulatedRun, Simulator, Work
from pybatch.tune.step_times import StepShape

CONTEXT = 512


@pytest.fixture(scope="module")
def decoder(tiny_model: Path) -> Decoder:
    return load_model(tiny_model, skip_tokenizer=True).decoder


def workload(n: int = 1) -> list[Work]:
    """Shuffled prompts of which groups begin alike, and outputs of all lengths."""
    chosen = random.Random(1)
    prefixes = [[chosen.randrange(2, 250) % 200 for _ in range(40)] for _ in range(4)]
    return [
        Work(
            [*chosen.choice(prefixes), *(chosen.randrange(2, 250) % 200 for _ in range(chosen.randrange(1, 60)))],
            [chosen.randrange(1, 40)] * n,
        )
        for _ in range(40)
    ]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_kv_blocks": 24, "predict_lengths": False},  # preempts
        {"num_kv_blocks": 24},
        {"policy": "static"},
        {"policy": "micro", "max_num_batched_tokens": 64},
        {"enable_prefix_caching": False, "block_size": 8},
        {"samples": 3, "num_kv_blocks": 60},
        {"swap_space": 0.01, "num_kv_blocks": 24, "predict_lengths": False},
        {"kv_policy": StreamingLLM(sinks=4, window=20), "num_kv_blocks": 40},
        {"kv_policy": SnapKV(budget=16, observed=8), "num_kv_blocks": 14},
        {"kv_policy": HeavyHitters(heavy=16, recent=16), "num_kv_blocks": 40, "samples": 2},
    ],
    ids=str,
)
def test_a_simulated_run_takes_the_steps_of_a_real_one(
    decoder: Decoder, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_same_steps(decoder, config, monkeypatch)


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    path = save(make("qwen3_5"), tmp_path_factory.mktemp("qwen3_5"))
    return load_model(path, skip_tokenizer=True).decoder


@pytest.mark.parametrize(
    "config",
    [{}, {"num_kv_blocks": 24, "predict_lengths": False}, {"enable_prefix_caching": False}, {"samples": 3}],
    ids=str,
)
def test_recurrent_states_are_simulated_too(
    recurrent: Decoder, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    expect_same_steps(recurrent, config, monkeypatch)


def expect_same_steps(decoder: Decoder, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"num_kv_blocks": 400, "max_num_seqs": 8, **config}
    samples, policy = settings.pop("samples", 1), settings.pop("kv_policy", None)
    engine = Engine(decoder, None, EngineConfig(**settings))
    monkeypatch.setattr(engine._swap_cost, "pays", lambda tokens, blocks: True)
    engine._new_schedule()
    works = [replace(work, kv_policy=policy) for work in workload(samples)]
    pending = list(enumerate(works))
    while pending or engine.has_unfinished():
        while pending and engine.num_unfinished() < engine.config.requests_ahead:
            i, work = pending.pop(0)
            params = SamplingParams(
                n=samples,
                temperature=1,
                ignore_eos=True,
                max_tokens=max(work.output_tokens),
                kv_policy=policy,
            )
            engine.add_request(str(i), list(work.prompt_token_ids), params, index=i)
        engine.step()
    metrics = engine.metrics

    run = Simulator(
        engine.config,
        lambda shape: 0.5,
        max_model_len=engine.max_model_len,
        num_kv_blocks=engine.num_kv_blocks,
        num_host_blocks=engine.num_host_blocks,
        num_states=engine.num_states,
    ).run(works)
    assert (run.steps, run.tokens, run.sequences) == (metrics.steps, metrics.step_tokens, metrics.step_sequences)
    assert (run.prompt_tokens, run.output_tokens) == (metrics.prompt_tokens, metrics.output_tokens)
    assert (run.cached_tokens, run.preemptions) == (metrics.cached_tokens, metrics.preemptions)
    assert metrics.peak_kv_blocks <= run.peak_kv_blocks <= engine.num_kv_blocks
    assert run.seconds == pytest.approx(run.steps * 0.5)
    assert (run.ttft.count, run.tpot.count) == (metrics.ttft.count, metrics.tpot.count)
    assert run.tpot.quantile(1) >= 0.5 * 0.99  # a step, at least
    assert run.preemptions or settings.get("predict_lengths", True)


def simulator(config: EngineConfig, num_kv_blocks: int = 400) -> Simulator:
    return Simulator(config, lambda shape: 0.5, max_model_len=CONTEXT, num_kv_blocks=num_kv_blocks)


def test_samples_of_a_request_end_each_by_itself() -> None:
    run = simulator(EngineConfig()).run([Work([1, 2, 3], [1, 4, 2])])
    assert (run.steps, run.output_tokens, run.sequences) == (4, 7, 1 + 2 + 1 + 1)


def test_a_sample_that_has_ended_takes_no_place() -> None:
    run = simulator(EngineConfig(max_num_seqs=2)).run([Work([1, 2, 3], [3, 1, 3])])
    assert (run.steps, run.tokens) == (3, 3 + 2 * 2)


def test_a_dynamic_batch_waits_on_the_virtual_clock() -> None:
    run = simulator(EngineConfig(policy="dynamic(max_wait=0.7)")).run([Work([1], [2])])
    assert run.steps == 2
    assert run.seconds == pytest.approx(0.7 + 2 * 0.5, abs=0.01)


def test_a_steps_time_depends_on_its_shape() -> None:
    seen: list[StepShape] = []

    def seconds(shape: StepShape) -> float:
        seen.append(shape)
        return 1.0 * shape.tokens

    run = Simulator(EngineConfig(), seconds, max_model_len=CONTEXT, num_kv_blocks=64).run([Work([7] * 5, [3])])
    assert [shape.tokens for shape in seen] == [5, 1, 1]
    assert run.seconds == 7.0


def test_no_requests_take_no_time_and_one_that_never_fits_is_refused() -> None:
    assert simulator(EngineConfig()).run([]) == SimulatedRun()
    with pytest.raises(ValueError, match="do not fit max_model_len"):
        simulator(EngineConfig()).run([Work([1] * CONTEXT, [1])])


def test_requests_are_drawn_as_there_is_room() -> None:
    drawn: list[int] = []
    stream = (drawn.append(i) or Work([i], [2]) for i in range(50))  # type: ignore[func-returns-value]
    most: list[int] = []

    def seconds(shape: StepShape) -> float:
        most.append(len(drawn))
        return 1.0

    Simulator(EngineConfig(max_num_seqs=4), seconds, max_model_len=CONTEXT, num_kv_blocks=64).run(stream)
    assert most[0] == 8
    assert len(drawn) == 50


def test_targets_cut_prompts_as_they_would_be_cut() -> None:
    """A step of 10 ms, and 1 ms for each token: with a target of 50 ms no step beside those that decode is longer."""
    lengths: list[float] = []

    def seconds(shape: StepShape) -> float:
        lengths.append(0.01 + 0.001 * shape.tokens)
        return lengths[-1]

    for target in (None, 0.05):
        works = [Work([i] * (20 if i < 4 else 400), [200 if i < 4 else 2]) for i in range(12)]
        works = [replace(work, standing=Standing(tpot_target=target)) for work in works]
        lengths.clear()
        run = Simulator(EngineConfig(max_num_seqs=5), seconds, max_model_len=CONTEXT, num_kv_blocks=400).run(works)
        assert run.prompt_tokens == 4 * 20 + 8 * 400
        late = sum(each > 0.05 for each in lengths)
        assert late > 5 if target is None else late <= 2  # before it is known what a step takes
