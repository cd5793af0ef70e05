from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from pybatch import LLM, SamplingParams
from pybatch.api.outcomes import Answer, Sample
from pybatch.api.session import Session
from pybatch.jobs.answers.cache_keys import CacheKeys
from pybatch.jobs.answers.job_answers import JobAnswers
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.estimate import estimate as estimate_module
from pybatch.jobs.estimate.estimate import Estimate, estimate, in_order, rows_to_try
from pybatch.jobs.estimate.survey import SampledRow
from pybatch.jobs.estimate.table import estimate_table
from pybatch.jobs.order.admission import AdmissionOrder
from pybatch.jobs.rows import Row
from pybatch.tune.cost import Prices
from pybatch.tune.output_lengths import OutputLengths
from pybatch.tune.simulator import SimulatedRun, Simulator, Work
from pybatch.tune.step_times import StepTimes

TIMES = StepTimes([1e-3, *[1e-5] * 6, 1e-5, 1e-8, 0.0, 0.0])


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=256, max_num_seqs=8, threads=1)


def estimated(llm: LLM, prompts: list[str], seconds: float = 60, times: StepTimes = TIMES, **params: Any) -> Estimate:
    rows = (Row(i, f"line {i + 1}", 10, {"prompt": prompt}) for i, prompt in enumerate(prompts))
    given = SamplingParams(**{"max_tokens": 16, "temperature": 0, **params})
    return estimate(llm, rows, PlainDialect(), given, times, trial_seconds=seconds)


def test_of_outputs_that_fill_their_limit_everything_but_the_time_is_exact(llm: LLM) -> None:
    chosen = random.Random(0)
    prompts = [f"{'shared ' * 20 * (i % 2)}{chosen.random()}" for i in range(40)]
    told = estimated(llm, prompts, ignore_eos=True)
    assert (told.output_tokens, told.output_tokens_at_most) == (40 * 16, 40 * 16)
    assert told.trial.rows == 8
    assert told.trial.output_tokens == 8 * 16
    assert told.trial.ended == 0
    assert told.seconds > 0
    assert told.preemptions == 0
    assert 4 < told.sequences_in_a_step <= 8

    llm.reset_prefix_cache()
    before = llm.engine.metrics.cached_tokens
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    outputs = llm.chat(chats, params, use_tqdm=False)
    assert told.prompt_tokens == sum(len(output.prompt_token_ids) for output in outputs)
    found = llm.engine.metrics.cached_tokens - before
    assert max(found, told.cached_prompt_tokens) <= told.shared_prompt_tokens
    assert abs(found - told.cached_prompt_tokens) < 16  # a job's order is another than that of `prompts`


def test_a_search_counts_all_of_its_beams(llm: LLM) -> None:
    prompts = [f"Say {i}" for i in range(12)]
    told = estimated(llm, prompts, ignore_eos=True, use_beam_search=True, best_of=4)
    assert (told.output_tokens, told.output_tokens_at_most) == (12 * 4 * 16, 12 * 4 * 16)
    assert told.trial.rows == 8 // 4
    assert 4 < told.sequences_in_a_step <= 8
    samples = estimated(llm, prompts, ignore_eos=True, temperature=1, n=4)
    assert samples.output_tokens == told.output_tokens
    assert samples.sequences_in_a_step == told.sequences_in_a_step


def test_the_expected_output_is_learnt_from_answers(tiny_model: Path) -> None:
    llm = LLM(tiny_model, num_kv_blocks=1024, max_num_seqs=32, threads=1)
    prompts = [f"Say {i}" for i in range(32)]
    params = {"max_tokens": 150, "temperature": 1.0, "seed": 1, "logit_bias": {0: 11}}  # 0 ends an answer
    told = estimated(llm, prompts, **params)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    outputs = [output.outputs[0] for output in llm.chat(chats, SamplingParams(**params), use_tqdm=False)]
    assert told.trial.ended == sum(output.finish_reason == "stop" for output in outputs) > 5
    assert told.output_tokens == sum(len(output.token_ids) for output in outputs)  # all of them have been tried
    part = estimated(llm, [f"Say {i}" for i in range(128)], **params)
    assert (part.trial.rows, part.output_tokens_at_most) == (32, 4 * 32 * 150)
    assert 0.5 < part.output_tokens / (4 * told.output_tokens) < 2


def test_answers_cut_off_by_the_time_leave_nothing_behind(llm: LLM) -> None:
    told = estimated(llm, ["Say it"] * 20, seconds=0, temperature=1.0, max_tokens=None, ignore_eos=True)
    assert told.trial.output_tokens == 0
    assert told.output_tokens == told.output_tokens_at_most
    assert llm.session.idle
    assert not llm.engine.has_unfinished()


def test_rows_hold_as_little_of_the_kv_cache_as_their_policy_keeps(llm: LLM) -> None:
    prompts = [f"{i} {'and on ' * 12}" for i in range(16)]
    whole, pruned = (
        estimated(llm, prompts, ignore_eos=True, max_tokens=150, kv_policy=policy)
        for policy in (None, {"type": "streaming_llm", "window": 32})
    )
    assert pruned.output_tokens == whole.output_tokens
    assert pruned.memory.kv_cache_peak < 0.8 * whole.memory.kv_cache_peak


@pytest.fixture
def step_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of the engine takes a second, and nothing else any time."""
    now = [0.0]
    step = Session.step

    def timed(self: Session) -> None:
        step(self)
        now[0] += 1

    monkeypatch.setattr(Session, "step", timed)
    monkeypatch.setattr(estimate_module, "time", SimpleNamespace(perf_counter=lambda: now[0]))


def test_answers_cut_off_by_the_time_count_for_the_length_they_reached(llm: LLM, step_clock: None) -> None:
    fields = [{"prompt": "Say it", "logit_bias": {"0": 100}, "seed": i} for i in range(4)]  # they end at once
    fields += [{"prompt": "Say it", "ignore_eos": True, "seed": i} for i in range(4)]
    rows = (Row(i, f"line {i + 1}", 10, each) for i, each in enumerate(fields))
    told = estimate(llm, rows, PlainDialect(), SamplingParams(max_tokens=5), TIMES, trial_seconds=3)
    assert (told.trial.seconds, told.trial.ended, told.trial.output_tokens) == (3, 4, 4 + 4 * 3)
    ends = 4 / (4 + 4 * 3)  # the rate at which outputs go on to end beyond 3 tokens
    assert told.output_tokens == 8 * (1 + 2 * 0.5 + 0.5 * (1 + (1 - ends)))


def test_the_time_is_that_of_the_rows_that_are_run(llm: LLM, step_clock: None) -> None:
    told = estimated(llm, [f"Say {i}" for i in range(8)] * 4, ignore_eos=True)
    assert told.trial.seconds == 16
    assert told.seconds == pytest.approx(16)
    twice = estimated(llm, [f"Say {i}" for i in range(16)], ignore_eos=True)
    assert twice.trial.seconds == 16
    assert twice.seconds == pytest.approx(32, rel=0.05)


def test_the_pool_that_a_job_fills_is_told(tiny_model: Path) -> None:
    llm = LLM(tiny_model, num_kv_blocks=40, max_num_seqs=8, threads=1, predict_lengths=False)
    told = estimated(llm, [f"{i} {'x' * 60}" for i in range(30)], max_tokens=200, ignore_eos=True)
    assert told.preemptions > 0
    assert told.memory.kv_cache == llm.engine.kv_cache_bytes
    assert 0.9 * told.memory.kv_cache < told.memory.kv_cache_peak <= told.memory.kv_cache
    assert told.memory.weights == llm.engine.weight_bytes
    assert told.memory.peak > told.memory.weights + told.memory.kv_cache_peak


def test_the_memory_that_prefixes_keep_is_told(tiny_model: Path) -> None:
    llm = LLM(tiny_model, num_kv_blocks=1024, max_num_seqs=4, threads=1)
    prompts = [f"{i} {'x' * 60}" for i in range(64)]
    told = estimated(llm, prompts, max_tokens=20, ignore_eos=True, temperature=0).memory
    llm = LLM(tiny_model, num_kv_blocks=1024, max_num_seqs=4, threads=1)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    llm.chat(chats, SamplingParams(max_tokens=20, ignore_eos=True, temperature=0), use_tqdm=False)
    touched = llm.engine._pool.num_touched * (llm.engine.kv_cache_bytes // 1024)
    assert 5 * told.kv_cache_peak < touched < told.kv_cache
    assert told.kv_cache_touched == pytest.approx(touched, rel=0.05)
    assert told.peak > told.weights + touched


def test_what_is_left_of_a_job_is_told(llm: LLM, tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=4, temperature=0)
    rows = [Row(i, f"line {i + 1}", 10, {"prompt": f"Say {i} {'x' * i}"}) for i in range(20)]
    whole = estimate(llm, rows, PlainDialect(), params, TIMES, trial_seconds=1)
    keys = CacheKeys("", max_model_len=llm.engine.max_model_len, engine_seed=llm.engine.config.seed)
    with JobAnswers(keys, "earlier", tmp_path) as answers:
        for row in rows[15:]:
            (prompt,) = llm.session.encode([(PlainDialect().request(row).prompts[0], params)])
            key = answers.key(prompt.token_ids, params, row.index)
            assert key is not None
            answers.put(key, row.index, Answer(1, (Sample("x", 1, "stop"),)))
        left = estimate(
            llm, rows, PlainDialect(), params, TIMES, done=lambda row: row.index < 10, answers=answers, trial_seconds=1
        )
    assert (whole.rows, whole.rows_done, whole.rows_in_cache) == (20, 0, 0)
    assert (left.rows, left.rows_done, left.rows_in_cache) == (10, 10, 5)
    assert 0 < left.prompt_tokens_in_cache < left.prompt_tokens < whole.prompt_tokens
    assert left.output_tokens_at_most == 5 * 4


def test_rows_that_repeat_others_cost_nothing(llm: LLM) -> None:
    chosen = [f"Say {i}" for i in range(8)]
    once, often = (estimated(llm, chosen * times, ignore_eos=True) for times in (1, 4))
    assert (often.repeated_rows, often.prompt_tokens) == (24, 4 * once.prompt_tokens)
    assert often.repeated_prompt_tokens == 3 * once.prompt_tokens
    assert often.output_tokens == once.output_tokens == 8 * 16
    assert "that repeat others │ 24" in " ".join(shown(often).split())


def test_several_samples_a_row(llm: LLM) -> None:
    told = estimated(llm, ["Say it"] * 6, n=3, temperature=1.0, ignore_eos=True)
    assert told.output_tokens == 6 * 3 * 16
    assert told.trial.rows == 2  # 6 of the 8 sequences that run at once
    assert told.trial.output_tokens == 2 * 3 * 16


@pytest.mark.parametrize("prompts", [[], ["x" * 2000]])
def test_a_job_without_a_row_that_can_run(llm: LLM, prompts: list[str]) -> None:
    told = estimated(llm, prompts)
    assert (told.rows, told.rows_failed, told.output_tokens) == (len(prompts), len(prompts), 0)
    assert told.trial.rows == 0
    json.dumps(told.to_json(Prices()))
    assert "about 0.0 s" in shown(told)


def test_as_many_rows_are_tried_as_their_prompts_leave_time_for() -> None:
    slow = StepTimes([0.0, *[0.01] * 6, 0.0, 0.0, 0.0, 0.0])  # 100 tokens a second
    rows = [SampledRow(i, array("q", [1] * 50), SamplingParams(), 16) for i in range(100)]
    chosen = rows_to_try(rows, slow, 10.0, most=64)
    assert [len(rows_to_try(rows, slow.scaled(factor), 10.0, most=64)) for factor in (0.01, 100)] == [64, 1]
    assert 3 <= len(chosen) <= 6
    gaps = [b.index - a.index for a, b in pairwise(chosen)]
    assert max(gaps) - min(gaps) <= 1


def shown(told: Estimate) -> str:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(estimate_table(told, Prices(2.0)))
    return console.export_text()


def test_the_table_and_the_json_have_the_figures(llm: LLM) -> None:
    told = estimated(llm, ["Say it", "x" * 2000, "Say more"], ignore_eos=True)
    text = shown(told)
    for words in (
        "rows",
        "bad: context length exceeded",
        f"{told.prompt_tokens:,}",
        "about 32",
        "2 rows answered",
        "MiB",
    ):
        assert words in text
    fields = json.loads(json.dumps(told.to_json(Prices())))
    assert fields["errors"]["context_length_exceeded"]["rows"] == fields["rows_failed"] == 1
    assert fields["errors"]["context_length_exceeded"]["first"][0].startswith("line 2: ")
    assert fields["prompts"] == ["<|role|>user: Say it<|end|><|role|>assistant: ", told.prompts[1]]


def test_times_are_scaled_to_fit_the_rows_that_were_answered(llm: LLM) -> None:
    prompts = [f"Say {i}" for i in range(16)]
    slow = estimated(llm, prompts, times=TIMES.scaled(1e6), ignore_eos=True)
    assert slow.trial.predicted_seconds > 1000
    assert slow.seconds < 100  # as on this machine, not on that one


def test_of_a_long_job_a_part_is_simulated_and_counts_for_all(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [f"Say {i}" for i in range(200)]
    monkeypatch.setattr(estimate_module, "MOST_SIMULATED", 40 * 16)
    simulated: list[int] = []
    run = Simulator.run

    def watched(self: Simulator, works: Iterable[Work]) -> SimulatedRun:
        result = run(self, works)
        simulated.append(result.output_tokens)
        return result

    monkeypatch.setattr(Simulator, "run", watched)
    told = estimated(llm, prompts, ignore_eos=True)
    assert simulated == [8 * 16, 40 * 16]  # those that were answered, then those that stand for all
    assert told.output_tokens == 200 * 16
    assert told.seconds > 4 * told.trial.seconds


def test_rows_are_simulated_in_the_order_of_admission() -> None:
    prefixes = [[1] * 64, [2] * 64]
    rows = [SampledRow(i, array("q", [*prefixes[i % 2], i]), SamplingParams(n=2), 16) for i in range(10)]
    works = list(in_order(rows, OutputLengths([(4, True)]), 16))
    assert sorted(work.prompt_token_ids[-1] for work in works) == list(range(10))
    assert sum(a.prompt_token_ids[0] != b.prompt_token_ids[0] for a, b in pairwise(works)) == 1
    assert all(work.output_tokens == [4, 4] for work in works)


def test_the_order_of_admission_goes_by_all_samples_of_a_row() -> None:
    """As the job's own: a row of many samples needs the KV memory of all of them."""
    chosen = random.Random(3)
    numbers = range(200)
    params = [SamplingParams(n=chosen.choice((1, 16)), max_tokens=chosen.choice((64, 128))) for _ in numbers]
    rows = [SampledRow(i, array("q", [i] * 32), params[i], 128) for i in numbers]
    order = AdmissionOrder[int](block_size=16)
    for i, row in enumerate(rows):
        order.push(i, row.token_ids, (row.params.max_tokens or 0) * row.params.n)
    admitted = [order.pop()[0] for _ in rows]
    assert [work.prompt_token_ids[0] for work in in_order(rows, OutputLengths([(4, True)]), 16)] == admitted


def test_long_times_are_told_in_hours_and_minutes(llm: LLM) -> None:
    told = estimated(llm, ["Say it"], ignore_eos=True)
    assert "about 2:03:20" in shown(replace(told, seconds=7400.4))
