"""pybatch bench."""

from __future__ import annotations

import json
from pathlib import Path

from cli_command import Cli


def test_a_step_is_shown_by_its_parts(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    flags = ("--sequences", "1,3", "--steps", "3", "--num-kv-blocks", "64", "--threads", "1", "--json", told)
    ran = cli("bench", "step", tiny_model, *flags)
    assert ran.code == 0, ran.err
    for part in ("schedule", "inputs", "sample", "update", "other", "step"):
        assert part in ran.out
    fields = json.loads(told.read_text())
    assert set(fields["seconds"]) == {"1", "3"}
    assert 0 < fields["seconds"]["1"]["schedule"] < fields["seconds"]["1"]["step"]
    assert fields["Model"]["dtype"] == "float32"


def test_wrong_usage_is_one_line(cli: Cli, tiny_model: Path) -> None:
    for flags, says in (
        (("--sequences", "1,many"), "sequences: expected positive numbers"),
        (("--sequences", "100", "--num-kv-blocks", "64"), "sequences: expected 1 to 64, got 100"),
        (("--json", "none/told.json"), "none/told.json: No such file"),
    ):
        ran = cli("bench", "step", tiny_model, *flags)
        assert (ran.code, says in ran.err, ran.err.count("\n")) == (2, True, 1), ran.err


def test_a_sweep_has_every_precision_and_its_knee(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    flags = ("--batch-sizes", "1,2", "--precision", "fp32", "--precision", "int8", "--input-tokens", "8")
    more = ("--output-tokens", "4", "--num-kv-blocks", "64", "--threads", "1", "--json", told)
    ran = cli("bench", "sweep", tiny_model, *flags, *more)
    assert ran.code == 0, ran.err
    assert ran.out.count("Knee at") == 2
    fields = json.loads(told.read_text())
    assert [each["precision"] for each in fields["sweeps"]] == ["fp32", "int8"]
    assert [point["max_num_seqs"] for point in fields["sweeps"][0]["points"]] == [1, 2]
    assert fields["ceilings"]["bandwidth"] > 0
