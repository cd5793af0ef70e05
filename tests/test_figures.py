"""The figures in README.md and docs/figures.md are those of the runs that bench/results/ keeps."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_pages_have_the_newest_runs() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "bench/figures.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert check.returncode == 0, check.stderr


def test_a_share_is_of_the_quiet_figure(tmp_path: Path) -> None:
    figures = runpy.run_path(str(ROOT / "bench/figures.py"), run_name="figures")["neighbours_table"]
    surroundings = {"quiet": [100.0, 90.0, 200.0], "busy": [80.0, 10.0, 70.0]}
    run = {
        "date": "2026-01-02", "cpu": "AMD(R) EPYC Processor", "threads": 2, "rounds": 3,
        "tokens_per_s": {"openvino:int8": {"decode1": surroundings, "decode32": surroundings}},
    }  # fmt: skip
    (tmp_path / "2026-01-02-cpu-neighbours.json").write_text(json.dumps(run))
    figures.__globals__["RESULTS"] = tmp_path
    assert figures().splitlines() == [
        "SmolLM2-135M-Instruct, 2 cores of AMD EPYC, 2026-01-02:",
        "",
        "| 3 rounds | 1 sequence, quiet | busy | 32, quiet | busy |",
        "| --- | --- | --- | --- | --- |",
        "| OpenVINO GenAI int8 | 100 | 70 (0.70) | 100 | 70 (0.70) |",
    ]


def test_what_is_said_of_quantisation_is_what_the_tables_have() -> None:
    said, readme = (ROOT / "pybatch/cli/command.py").read_text(), (ROOT / "README.md").read_text()
    on_avx512, on_avx2 = gains("AVX-512"), gains("AVX2 alone")
    assert f"{min(on_avx512):.1f} to {max(on_avx512):.1f} times as fast as `float32`" in readme
    assert f"{min(on_avx2):.1f} to {max(on_avx2):.1f} with AVX2 alone" in readme
    both = on_avx512 + on_avx2
    assert f"is about {min(both):.0f} to {max(both):.0f} times as fast" in said


def gains(instructions: str) -> list[float]:
    """How many times as fast as fp32 the faster of gguf and int8 is, in each column of SmolLM2's newest table."""
    _, _, after = (ROOT / "docs/figures.md").read_text().partition(f"SmolLM2-135M-Instruct, {instructions}, ")
    rows = [line.replace("*", "").split(" | ") for line in after.split("\n\n")[1].splitlines()]
    int8, gguf, fp32 = (
        [float(cell) for cell in cells[1:-1]]
        for name in ("int8", "gguf", "fp32")
        for cells in rows
        if cells[0] == f"| pybatch {name}"
    )
    return [max(fast) / slow for *fast, slow in zip(int8, gguf, fp32, strict=True)]
