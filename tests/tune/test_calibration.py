from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pybatch import LLM, SamplingParams
from pybatch.machine.cache_folder import cache_folder
from pybatch.tune import calibration
from pybatch.tune.calibration import MeasuredEngine, calibrated, keep, kept_in, key_of, measure
from pybatch.tune.kept import KEPT
from pybatch.tune.step_times import StepShape, StepTimes

FAST = StepTimes([1e-3, *[1e-5] * 5, 4e-5, 5e-6, 1e-7, 0.0, 0.0])


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=256, threads=1)


@pytest.fixture
def made_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[StepTimes], Callable[[], float]]:
    """Steps take what is made up for them, by a clock of their own."""
    now = [0.0]
    step = MeasuredEngine.step

    def install(times: StepTimes, delayed: int = 0) -> Callable[[], float]:
        steps = count(1)

        def timed(self: MeasuredEngine) -> Any:
            outputs = step(self)
            assert self.shape is not None
            late = delayed and next(steps) % delayed == 0
            now[0] += times.seconds(self.shape) * (5 if late else 1)
            return outputs

        monkeypatch.setattr(MeasuredEngine, "step", timed)
        return lambda: now[0]

    return install


def test_the_costs_of_a_machine_are_found(llm: LLM, made_machine: Callable[..., Callable[[], float]]) -> None:
    clock = made_machine(FAST)
    found = measure(llm.engine, clock=clock)
    assert clock() < 9
    for shape in (StepShape(64, 64, 64 * 150, 0), StepShape(1, 1, 400, 0), StepShape(300, 20, 19 * 60, 281 * 141)):
        assert found.seconds(shape) == pytest.approx(FAST.seconds(shape), rel=0.01)


def test_what_delays_some_steps_does_not_count(llm: LLM, made_machine: Callable[..., Callable[[], float]]) -> None:
    found = measure(llm.engine, clock=made_machine(FAST, delayed=4))
    for shape in (StepShape(64, 64, 64 * 150, 0), StepShape(1, 1, 400, 0), StepShape(300, 20, 19 * 60, 281 * 141)):
        assert found.seconds(shape) == pytest.approx(FAST.seconds(shape), rel=0.1)


@pytest.mark.parametrize("factor", [30, 300, 3000])
def test_a_slow_machine_is_measured_with_fewer_points(
    llm: LLM, made_machine: Callable[..., Callable[[], float]], factor: int
) -> None:
    slow = FAST.scaled(factor)
    clock = made_machine(slow)
    found = measure(llm.engine, clock=clock)
    one = StepShape(1, 1, 3, 0)
    assert clock() < 9 + slow.seconds(one)  # a step that has begun ends
    assert found.seconds(one) == pytest.approx(slow.seconds(one), rel=0.1)


def test_real_steps_are_measured_beside_the_engine(llm: LLM) -> None:
    prompt = list(range(2, 100))
    llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    before = llm.engine.metrics.steps
    times = measure(llm.engine, seconds=0.5)
    assert times.seconds(StepShape(8, 8, 80, 0)) > 0
    assert llm.engine.metrics.steps == before
    (output,) = llm.generate([prompt], SamplingParams(max_tokens=1), use_tqdm=False)
    assert output.num_cached_tokens == 97  # what was cached before


@pytest.mark.parametrize("config", [{"max_model_len": 3}, {"num_kv_blocks": 1, "block_size": 8}, {"max_num_seqs": 1}])
def test_small_engines_can_be_measured(tiny_model: Path, config: dict[str, Any]) -> None:
    engine = LLM(tiny_model, **{"num_kv_blocks": 64, "threads": 1, **config}).engine
    assert measure(engine, seconds=0.2).seconds(StepShape(1, 1, 2, 0)) > 0


# ---- what is kept ----


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[StepTimes]:
    """The measurements made, each with other times."""
    made: list[StepTimes] = []

    def measure(engine: object) -> StepTimes:
        made.append(FAST.scaled(1 + len(made)))
        return made[-1]

    monkeypatch.setattr(calibration, "measure", measure)
    return made


def test_a_machine_is_measured_once(
    llm: LLM, measured: list[StepTimes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = calibrated(llm.engine, "model a")
    assert calibrated(llm.engine, "model a").coefficients == first.coefficients
    assert len(measured) == 1
    calibrated(llm.engine, "model b")
    assert len(measured) == 2
    assert calibrated(llm.engine, "model a").coefficients == first.coefficients
    assert [each.name for each in (tmp_path / "pybatch").iterdir()] == ["calibration.json"]


def test_what_a_steps_time_depends_on_is_in_the_key(
    llm: LLM, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = key_of(llm.engine, "a")
    assert json.dumps(key_of(LLM(tiny_model, num_kv_blocks=99, seed=3, threads=1).engine, "a")) == json.dumps(key)
    for changed in ({"quantization": "int8"}, {"kv_cache_dtype": "int8"}, {"max_num_seqs": 8}, {"block_size": 8}):
        other = key_of(LLM(tiny_model, num_kv_blocks=256, threads=1, **changed).engine, "a")
        assert {name for name in key if key[name] != other[name]} == changed.keys()
    two = key_of(LLM(tiny_model, num_kv_blocks=256, threads=2).engine, "a")
    assert two["threads"] == 2
    monkeypatch.setattr("pybatch.__version__", "0.0.0")
    assert key_of(llm.engine, "a")["pybatch"] == "0.0.0"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"x": 1}', b"null"])
def test_a_damaged_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "calibration.json"
    path.write_bytes(content)
    assert kept_in(path, {"model": "a"}) is None
    keep(path, {"model": "a"}, FAST)
    kept = kept_in(path, {"model": "a"})
    assert kept is not None
    assert kept.coefficients == FAST.coefficients


def test_the_file_does_not_grow_without_bounds(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    for i in range(KEPT + 2):
        keep(path, {"model": i}, FAST.scaled(i + 1))
    assert kept_in(path, {"model": 1}) is None
    assert kept_in(path, {"model": 2}) is not None
    assert len(json.loads(path.read_bytes())) == KEPT


@pytest.mark.parametrize("where", ["a file", "read-only", "no home"])
def test_without_a_folder_to_write_to_it_measures_again(
    llm: LLM, measured: list[StepTimes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", {"a file": str(tmp_path / "file")}.get(where, ""))
    monkeypatch.setenv("HOME", {"read-only": "/proc/none", "no home": ""}.get(where, ""))
    assert calibrated(llm.engine, "a").coefficients != calibrated(llm.engine, "a").coefficients
    assert len(measured) == 2


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/home/someone/.cache/pybatch")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/tmp/caches")
    assert cache_folder() == Path("/var/tmp/caches/pybatch")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/someone/.cache/pybatch")
    monkeypatch.setenv("HOME", "relative")
    assert cache_folder() is None
