"""bench/throughput.py: its engines' settings and its ratios."""

from __future__ import annotations

import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pybatch
from pybatch import _C

BENCH = Path(__file__).resolve().parent.parent / "bench"
CPUINFO = Path("/proc/cpuinfo")
CANNOT_HIDE = not CPUINFO.exists() or not {"cpuid_fault", "avx512f"} <= {*CPUINFO.read_text().split()}


def test_a_ratio_is_of_a_round_and_of_the_best_precisions() -> None:
    ratios = runpy.run_path(str(BENCH / "throughput.py"), run_name="throughput")["ratios"]
    results = {
        "pybatch:int8": {"decode": {"tokens_per_s": 10, "seconds": [1.0, 2.0, 4.0]}},
        "pybatch:fp32": {"decode": {"tokens_per_s": 5, "seconds": [2.0, 4.0, 8.0]}},
        "other:slow": {"decode": {"tokens_per_s": 1, "seconds": [9.0, 9.0, 9.0]}},
        "other:quick": {"decode": {"tokens_per_s": 4, "seconds": [2.0, 6.0, 10.0]}},
    }
    compared = ratios(results, ["decode"])
    of_best = {"of": "pybatch:int8", "to": "other:quick", "median": 2.5, "least": 2.0, "greatest": 3.0}
    assert compared["best"] == compared["pybatch:int8"] == {"other": {"decode": of_best}}
    assert compared["pybatch:fp32"]["other"]["decode"]["median"] == 1.25


def test_an_engine_runs_in_the_environment_of_its_spec(tiny_model: Path, tmp_path: Path) -> None:
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    isa = _C.possible_isas()[-1]
    requests = [{"prompt": [5, 6, 7], "max_new": 3}, {"prompt": [8, 9], "max_new": 2}]
    (tmp_path / "workload.json").write_text(json.dumps({"model": "tiny", "cases": {"decode2": requests}}))
    options = ["--workload", f"{tmp_path}/workload.json", "--rounds", "2", "--threads", "1"]
    spec = f"pybatch:fp32,model={model},env=PYBATCH_ISA={isa},env=OMP_WAIT_POLICY=passive"
    command = [sys.executable, str(BENCH / "throughput.py"), "--engine", spec, "--json", f"{tmp_path}/result.json"]
    env = {"PYTHONPATH": str(Path(pybatch.__file__).parents[1])}
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=60, env=env)
    run = json.loads((tmp_path / "result.json").read_text())
    assert run["engines"]["pybatch:fp32"]["uses"] == isa
    entry = run["results"]["pybatch:fp32"]["decode2"]
    assert (len(entry["seconds"]), entry["tokens"], entry["repeats_itself"]) == (2, 5, True)
    assert 0 < entry["anon_rss_mib"] < entry["peak_rss_mib"]


@pytest.mark.skipif(CANNOT_HIDE, reason="no AVX-512 to hide, or CPUID cannot be made to fault")
def test_what_comes_after_avx2_is_hidden(tmp_path: Path) -> None:
    throughput = runpy.run_path(str(BENCH / "throughput.py"), run_name="throughput")
    ask = "from numpy._core._multiarray_umath import __cpu_features__ as has; print(has['AVX2'], has['AVX512F'])"
    held = throughput["avx2_environment"](str(tmp_path))
    for env, shown in (({}, "True True"), (held, "True False")):
        answer = subprocess.run([sys.executable, "-c", ask], env=env, capture_output=True, text=True, check=True)
        assert answer.stdout.strip() == shown
    code = "import time, worker\nend = time.time() + 0.5\nwhile time.time() < end: pass\nprint(worker.used_avx512(0.4))"
    python = [sys.executable, "-c", code]
    answer = subprocess.run(python, env=held, cwd=BENCH / "engines", capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
