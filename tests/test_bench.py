"""The programs in bench/ find what they import."""

import runpy
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parent.parent / "bench"
NAMES = (
    "crash_points disconnects estimate gpu_kernels gpu_models idle_connections kernels kill load million order "
    "serve_fuzz serving step_profile steps throughput"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_benchmark_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    assert callable(runpy.run_path(str(BENCH / f"{name}.py"), run_name=name)["main"])
