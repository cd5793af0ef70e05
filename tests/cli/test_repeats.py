"""Jobs whose rows repeat what other rows, or other jobs, have computed."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_command import Cli

import pybatch

FAST = ["--max-tokens", "4", "--ignore-eos", "--threads", "1", "--raw"]

Run = Callable[..., tuple[str, list[dict[str, Any]]]]


@pytest.fixture
def job(cli: Cli, tiny_model: Path, tmp_path: Path) -> Run:
    def run(name: str, prompts: list[str], *arguments: str) -> tuple[str, list[dict[str, Any]]]:
        """What the command prints, and the results. name: of the job's files."""
        rows, output = tmp_path / f"{name}.jsonl", tmp_path / f"{name}.out.jsonl"
        rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
        ran = cli("run", rows, "-o", output, "--model", tiny_model, *FAST, *arguments)
        assert ran.code == 0, ran.err
        return ran.err, [json.loads(line) for line in output.read_text().splitlines()]

    return run


def cached(results: list[dict[str, Any]]) -> list[int]:
    return [row["row"] for row in results if row.get("cached")]


def test_answers_of_a_job_serve_later_ones(job: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy = ["--cache", str(tmp_path / "cache"), "--num-kv-blocks", "64", "--temperature", "0"]
    _, first = job("first", ["A", "B", "A"], *greedy)
    assert cached(first) == [2]
    printed, second = job("second", ["B", "C", "A"], *greedy, "--seed", "5", "--max-num-seqs", "2")
    assert cached(second) == [0, 2]
    assert re.search(r"cached rows\W+2\b", printed)
    assert [row["response"] for row in second[::2]] == [first[1]["response"], first[0]["response"]]
    _, other_tokens = job("third", ["A"], *greedy, "--max-tokens", "5")
    assert not cached(other_tokens)
    monkeypatch.setattr(pybatch, "__version__", "another")
    _, other_version = job("fourth", ["A"], *greedy)
    assert not cached(other_version)


def test_a_damaged_cache_is_told_and_the_job_runs(job: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("not a folder")
    _, results = job("job", ["A", "B", "A"], "--cache", str(tmp_path / "cache"), "--temperature", "0")
    assert cached(results) == [2], "equal rows that are in flight run once even so"
    assert [record.levelname for record in caplog.records if "cache" in record.getMessage()] == ["WARNING"]


def test_rows_of_shuffled_prefixes_find_them_in_a_cache_that_holds_few(job: Run) -> None:
    rng = random.Random(0)
    groups, rows, prefix = 8, 64, 80
    prefixes = ["".join(rng.choices("abcdefgh ", k=prefix)) for _ in range(groups)]
    prompts = [prefixes[i % groups] + f"{i} " + "x" * rng.randrange(20) for i in range(rows)]
    rng.shuffle(prompts)
    small = ["--num-kv-blocks", "28", "--max-model-len", "128", "--max-num-seqs", "4", "--max-num-batched-tokens", "64"]
    printed, results = job("job", prompts, *small, "--temperature", "0")
    assert [row["prompt"] for row in results] == prompts
    hits = re.search(r"prefix hits\W+([\d.]+)%", printed)
    assert hits is not None
    ideal = 100 * (rows - groups) * prefix / sum(map(len, prompts))
    assert float(hits[1]) >= 0.9 * ideal
