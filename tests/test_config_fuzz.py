"""Random engine arguments: bench/config_fuzz.py runs a thousand, and this a few of them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

FILE = Path(__file__).parents[1] / "bench" / "config_fuzz.py"


def test_each_configuration_runs_or_is_refused_by_one_clear_error() -> None:
    spec = importlib.util.spec_from_file_location("config_fuzz", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made = list(module.outcomes(40, seed=7, seconds=20))
    assert [(given, error) for given, kind, error in made if kind == "fault"] == []
    assert {kind for _, kind, _ in made} == {"ran", "refused"}
