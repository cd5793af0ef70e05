"""bench/neighbours.py: each engine has a figure in each of the surroundings."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pybatch

BENCH = Path(__file__).resolve().parent.parent / "bench"


@pytest.mark.skipif(sys.platform != "linux", reason="needs CPU affinity")
def test_every_surroundings_has_a_figure_of_each_round(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    (tmp_path / "workload.json").write_text(json.dumps({"cases": {"decode1": [{"prompt": [5, 6], "max_new": 3}]}}))
    command = [sys.executable, BENCH / "neighbours.py", "--engine", f"pybatch:fp32,model={model}", "--case", "decode1"]
    options = ["--workload", tmp_path / "workload.json", "--rounds", "2", "--json", tmp_path / "result.json"]
    env = {"PYTHONPATH": str(Path(pybatch.__file__).parents[1])}
    done = subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=100, env=env)
    figures = json.loads((tmp_path / "result.json").read_text())["tokens_per_s"]["pybatch:fp32"]["decode1"]
    expected = {"quiet", "busy", "spinning"} | ({"quota"} if "No quota" not in done.stderr else set())
    assert figures.keys() == expected
    assert all(len(rates) == 2 and min(rates) > 0 for rates in figures.values())
