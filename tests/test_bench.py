"""The programs in bench/ find what they import."""

import importlib
import runpy
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
NAMES = (
    "crash_points disconnects estimate gpu_kernels gpu_models idle_connections kernels kill load million order "
    "policies serve_fuzz serving sharing speculation step_profile steps structured thrash throughput"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_benchmark_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    assert callable(runpy.run_path(str(BENCH / f"{name}.py"), run_name=name)["main"])


@pytest.mark.parametrize("number", [0, 2, 6])
def test_where_kv_is_a_tenth_of_demand_hardly_a_token_is_computed_twice(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    thrash = importlib.import_module("thrash")
    full, short = (thrash.run(thrash.SHAPES[number], share) for share in (1.05, 0.1))
    assert short.recomputed <= 0.05 * short.computed
    assert full.recomputed == full.preemptions == 0
    assert full.clock > 0.55 * short.clock
    greedy = thrash.run(thrash.SHAPES[number], 0.1, predict_lengths=False)
    assert greedy.recomputed > 2 * short.recomputed
    assert short.clock < 1.1 * greedy.clock  # which is not paid for by small batches
