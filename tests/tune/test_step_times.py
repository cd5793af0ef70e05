from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.scheduling.step import Chunk
from pybatch.model import load_model
from pybatch.tune.step_times import StepShape, StepTimes, non_negative_least_squares

MADE = StepTimes([4e-3, *[1e-5] * 5, 3.1e-4, 5e-5, 1e-7, 2e-9, 0.0])


def shapes() -> list[StepShape]:
    decodes = [StepShape(n, n, n * context, 0) for n in (1, 4, 8, 12, 16, 32, 64, 200) for context in (20, 500)]
    prompts = [StepShape(n, 1, 0, n * before + n * (n + 1) // 2) for n in (16, 100, 512) for before in (0, 1000)]
    return decodes + prompts


def test_costs_are_found_again_from_times() -> None:
    fitted = StepTimes.fit(shapes(), [MADE.seconds(shape) for shape in shapes()])
    assert fitted.error < 0.005
    for shape in (StepShape(30, 30, 9000, 0), StepShape(300, 2, 60, 100_000), StepShape(1, 1, 1, 0)):
        assert fitted.seconds(shape) == pytest.approx(MADE.seconds(shape), rel=0.02)


def test_noise_makes_no_cost_negative_and_is_told() -> None:
    noise = np.random.default_rng(0).uniform(0.8, 1.2, len(shapes()))
    fitted = StepTimes.fit(shapes(), [MADE.seconds(s) * f for s, f in zip(shapes(), noise, strict=True)])
    assert min(fitted.coefficients) >= 0
    assert 0.02 < fitted.error < 0.2
    for shape in shapes():
        assert fitted.seconds(shape) == pytest.approx(MADE.seconds(shape), rel=0.25)


def test_a_full_tile_of_rows_makes_the_next_tokens_cost_more_than_those_behind_them() -> None:
    seconds = {1: 18.0, 8: 22.0, 12: 24.0, 16: 34.0, 24: 38.0, 32: 42.0, 48: 60.0, 64: 69.0}  # of float32, measured
    fitted = StepTimes.fit([StepShape(n, n, 5 * n, 0) for n in seconds], list(seconds.values()))
    for n, measured in seconds.items():
        assert fitted.seconds(StepShape(n, n, 5 * n, 0)) == pytest.approx(measured, rel=0.08)


def test_one_step_is_enough_to_fit_and_none_is_not() -> None:
    shape = StepShape(1, 1, 10, 0)
    assert StepTimes.fit([shape], [0.5]).seconds(shape) == pytest.approx(0.5)
    assert StepTimes.fit([shape], [0.5]).seconds(StepShape(1, 1, 20, 0)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="at least one step"):
        StepTimes.fit([], [])


def test_steps_that_compute_prompts_and_those_that_only_decode_have_factors_of_their_own() -> None:
    made = MADE.corrected(decodes=2, prompts=3)
    decode, prompt = StepShape(4, 4, 100, 0), StepShape(20, 4, 60, 300)
    assert made.seconds(decode) == pytest.approx(2 * MADE.seconds(decode))
    assert made.seconds(prompt) == pytest.approx(3 * MADE.seconds(prompt))


def test_scaled_costs() -> None:
    assert MADE.scaled(2).seconds(shapes()[0]) == pytest.approx(2 * MADE.seconds(shapes()[0]))


def test_json_brings_the_same_costs_back() -> None:
    again = StepTimes.from_json(json.loads(json.dumps(MADE.to_json())))
    assert (again.coefficients, again.error) == (MADE.coefficients, MADE.error)


@pytest.mark.parametrize("fields", [[], {}, {"seconds": {"step": 1}, "error": 0}, {"seconds": 1}, None])
def test_json_of_something_else_is_refused(fields: Any) -> None:
    with pytest.raises(ValueError, match="expected the costs step, token"):
        StepTimes.from_json(fields)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_least_squares_are_the_best_without_a_negative(seed: int, columns: int, rows: int) -> None:
    random = np.random.default_rng(seed)
    matrix, target = random.normal(size=(rows, columns)), random.normal(size=rows)
    x = non_negative_least_squares(matrix, target)
    assert (x >= 0).all()
    gradient = matrix.T @ (matrix @ x - target)  # Kuhn and Tucker: 0 where x is positive, not negative where it is 0
    assert (gradient > -1e-6).all()
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-6


def test_a_steps_shape_is_what_its_chunks_compute(tiny_model: Path) -> None:
    seen: list[StepShape] = []

    class Watched(Engine):
        def _schedule(self) -> list[Chunk]:
            chunks = super()._schedule()
            seen.append(StepShape.of(chunks))
            return chunks

    config = EngineConfig(num_kv_blocks=64, max_num_batched_tokens=16)
    engine = Watched(load_model(tiny_model, skip_tokenizer=True).decoder, None, config)
    for i, length in enumerate((20, 3)):
        params = SamplingParams(temperature=0, max_tokens=2 + i, ignore_eos=True)
        engine.add_request(str(i), list(range(2 + i, 2 + i + length)), params)
    while engine.has_unfinished():
        engine.step()
    assert seen == [
        StepShape(tokens=16, sequences=0, context=0, pairs=sum(range(1, 17))),
        StepShape(tokens=7, sequences=2, context=0, pairs=(17 + 18 + 19 + 20) + (1 + 2 + 3)),
        StepShape(tokens=2, sequences=2, context=21 + 4, pairs=0),
        StepShape(tokens=1, sequences=1, context=5, pairs=0),
    ]
