"""pybatch plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_command import Cli

WORK = ("--input-tokens", "40", "--output-tokens", "10", "--rows", "100", "--max-num-seqs", "8")
CHIP = ("--chip", "L4", "--precision", "int8", "--kv-cache-dtype", "fp8")


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Path:
    """A directory without weights."""
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    return tmp_path


def test_a_plan_needs_a_config_alone(cli: Cli, config: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    prices = ("--price-per-hour", "0.8", "--compare-price", "mini:0.15:0.60", "--json", told)
    ran = cli("plan", config, *CHIP, *WORK, *prices)
    assert ran.code == 0
    assert "L4 (NVIDIA L4 Tensor Core GPU Datasheet): 100 rows of 40 tokens in, 10 out" in ran.out
    assert "Cheapest: int8, --kv-cache-dtype fp8 --max-num-seqs 8" in ran.out
    assert "cost by mini: $0.00120" in ran.out
    (option,) = json.loads(told.read_text())["options"]
    assert [point["max_num_seqs"] for point in option["points"]] == [1, 2, 4, 8]
    assert option["cost"]["dollars"] == pytest.approx(0.8 * option["usage"]["seconds"] / 3600)


def test_weights_on_the_host_are_planned(cli: Cli, config: Path, tmp_path: Path) -> None:
    fields, told = json.loads((config / "config.json").read_text()), tmp_path / "told.json"
    (config / "config.json").write_text(json.dumps({**fields, "hidden_size": 1024, "num_hidden_layers": 8}))
    ran = cli("plan", config, *CHIP, *WORK, "--cpu-offload-gb", "0.03", "--json", told)
    assert ran.code == 0, ran.err
    assert "--max-num-seqs 8 --cpu-offload-gb 0.03" in ran.out
    (option,) = json.loads(told.read_text())["options"]
    assert 0.02 < option["host_weight_bytes"] / 2**30 < 0.03
    assert "transfer" in option["best"]["spent"]


def test_many_machines_are_planned_with_their_faults(cli: Cli, config: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    many = ("--machines", "100", "--startup", "30", "--stragglers", "0.1:3", "--mtbf", "50")
    ran = cli("plan", config, *CHIP, *WORK, "--rows", "1000000", *many, "--price-per-hour", "2", "--json", told)
    assert ran.code == 0, ran.err
    assert "10% of them 3 times as slow" in ran.out
    made = json.loads(told.read_text())["fleets"]
    assert [each["fleet"]["machines"] for each in made] == [12, 25, 50, 100]
    assert made[0]["cost"] == pytest.approx(2 * made[0]["typical"]["machine_seconds"] / 3600)
    ran = cli("plan", config, *CHIP, *WORK, "--machines", "2", "--stragglers", "many")
    assert (ran.code, "stragglers: expected SHARE:FACTOR" in ran.err) == (2, True)
    ran = cli("plan", config, *CHIP, *WORK, "--mtbf", "3")
    assert (ran.code, "expected --machines too" in ran.err) == (2, True)
    ran = cli("plan", config, *CHIP, *WORK, "--machines", "1000000")
    assert (ran.code, "'--machines': Input should be less than or equal to 100000" in ran.err) == (2, True)


def test_a_file_of_prompts_is_a_workload(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "abcdefgh", "max_tokens": 4}\n' * 3)
    ran = cli("plan", tiny_model, *CHIP, "--prompts", prompts)
    assert ran.code == 0
    assert "3 rows of 8 tokens in, 4 out" in ran.out  # by the model's tokenizer


def test_where_nothing_meets_the_targets_the_code_says_so(cli: Cli, config: Path) -> None:
    ran = cli("plan", config, *CHIP, *WORK, "--tpot", "1e-9")
    assert ran.code == 1
    assert "no batch size meets the targets" in " ".join(ran.out.split())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ((), "expected --prompts, or --input-tokens, --output-tokens and --rows"),
        ((*WORK, "--chip", "H9000"), "chip: expected one of H100-SXM"),
        ((*WORK, *CHIP, "--precision", "fp4"), "precision: expected one of"),
        ((*WORK, *CHIP, "--input-tokens", "many"), "input_tokens: expected a number of tokens"),
        ((*WORK, *CHIP, "--deadline", "-1"), "deadline: expected seconds"),
        ((*WORK, *CHIP, "--prompts", "none.jsonl"), "--prompts: its rows have lengths of their own"),
        ((*CHIP, "--prompts", "none.jsonl"), "none.jsonl: No such file"),
        ((*WORK, *CHIP, "--json", "none/told.json"), "none/told.json: No such file"),
        ((*WORK, *CHIP, "--cpu-offload-gb", "nan"), "cpu_offload_gb: expected a number of GiB"),
        ((*WORK, *CHIP, "--cpu-offload-gb", "1"), "cpu_offload_gb: expected at least the weights of 3 layers"),
        ((*WORK, "--cpu-offload-gb", "1"), "cpu_offload_gb: expected 0 on the CPU"),
        ((*WORK, *CHIP, "--price-per-hour", "-1"), "price_per_hour: expected dollars"),
    ],
)
def test_wrong_usage_is_one_line(cli: Cli, config: Path, flags: tuple[str, ...], says: str) -> None:
    ran = cli("plan", config, *flags)
    assert ran.code == 2
    assert ran.err.startswith("pybatch: ")
    assert says in ran.err
    assert ran.err.count("\n") == 1


def test_a_model_that_is_none_is_refused(cli: Cli, tmp_path: Path) -> None:
    ran = cli("plan", tmp_path / "none", *CHIP, *WORK)
    assert ran.code == 2
    assert "model: expected a directory" in ran.err
