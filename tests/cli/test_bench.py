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
        (("--sequences", "1,many"), "sequences: expected numbers from 1 to 4096"),
        (("--sequences", "100", "--num-kv-blocks", "64"), "sequences: expected 1 to 64, got 100"),
        (("--steps", "300", "--num-kv-blocks", "64"), "steps: expected at most 254, got 300"),
        (("--json", "none/told.json"), "none/told.json: No such file"),
    ):
        ran = cli("bench", "step", tiny_model, *flags)
        assert (ran.code, says in ran.err, ran.err.count("\n")) == (2, True, 1), ran.err


def test_a_sweep_has_every_precision_and_policy_and_its_knee(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    told, page, picture = tmp_path / "told.json", tmp_path / "page.html", tmp_path / "plots.png"
    flags = ("--batch-sizes", "1,2", "--precision", "fp32", "--precision", "int8", "--input-tokens", "uniform:4:8")
    more = ("--output-tokens", "4", "--num-kv-blocks", "64", "--threads", "1", "--batching", "continuous")
    files = ("--batching", "static", "--json", told, "--html", page, "--png", picture)
    ran = cli("bench", "sweep", tiny_model, *flags, *more, *files)
    assert ran.code == 0, ran.err
    assert ran.out.count("Knee at") == 4
    assert "above 64" in ran.out
    fields = json.loads(told.read_text())
    made = [(each["precision"], each["policy"]) for each in fields["sweeps"]]
    assert made == [(precision, policy) for precision in ("float32", "int8") for policy in ("continuous", "static")]
    assert [point["max_num_seqs"] for point in fields["sweeps"][0]["points"]] == [1, 2]
    assert fields["ceilings"]["bandwidth"] > 0
    assert fields["facts"]["cpu"]
    assert picture.read_bytes().startswith(b"\x89PNG")
    text = page.read_text()
    assert text.count("<svg") == 3
    assert "knee of int8, static" in text


def test_a_sweep_takes_rows_of_a_file_and_a_gguf_model(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Once upon", "max_tokens": 3}\n' * 4)
    flags = ("--batch-sizes", "2", "--rounds", "1", "--prompts", rows, "--num-kv-blocks", "64", "--threads", "1")
    ran = cli("bench", "sweep", tiny_model, *flags)
    assert ran.code == 0, ran.err
    for wrong, says in (
        (("--precision", "fp4"), "precision: expected one of float32, bfloat16, float16, int8, int8-weight-only, gguf"),
        (("--batching", "some"), "policy"),
        (("--output-tokens", "99999999"), "output_tokens: expected a number of tokens"),
        (("--input-tokens", "8"), "--prompts: its rows have lengths of their own"),
        (("--precision", "gguf", "--gguf", tmp_path / "none.gguf"), "none.gguf"),
    ):
        ran = cli("bench", "sweep", tiny_model, *flags, *wrong)
        assert (ran.code, says in ran.err) == (2, True), ran.err


def test_a_sweep_of_rows_that_do_not_fit_says_so_at_once(cli: Cli, tiny_model: Path) -> None:
    ran = cli("bench", "sweep", tiny_model, "--input-tokens", "10000000", "--num-kv-blocks", "64", "--threads", "1")
    assert (ran.code, ran.err) == (
        2,
        "pybatch: input_tokens: a row has 10,000,032 tokens in and out, of at most 512\n",
    )
