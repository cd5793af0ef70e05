"""pybatch run --ray, on a real cluster of two workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli_command import COMMAND, Cli
from embedding_models import random, saved
from transformers import Qwen3Config, Qwen3ForSequenceClassification

import pybatch

ROWS = 200
SECONDS = 180  # after which a test gives up
SETTINGS = ["--temperature", "1", "--max-tokens", "100", "--ignore-eos", "--max-num-seqs", "8", "--threads", "1"]


def test_a_worker_is_killed_and_the_job_is_interrupted_and_goes_on_as_if_nothing_had_been(
    cluster: Any, tiny_model: Path, tmp_path: Path
) -> None:
    prompts, whole, results = tmp_path / "prompts.jsonl", tmp_path / "whole.jsonl", tmp_path / "results.jsonl"
    rows = [{"prompt": f"Say {i}", **({"temperature": 0} if i % 2 else {}), "n": 1 + i % 3} for i in range(ROWS)]
    lines = [json.dumps(row) for row in rows]
    lines[17] = '{"prompt": "cut'
    prompts.write_text("\n".join(lines) + "\n")
    command = [*COMMAND, "run", str(prompts), "--model", str(tiny_model), *SETTINGS]
    on_cluster = [*command, "-o", str(results), "--ray", cluster.address]
    with subprocess.Popen(on_cluster, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait(lambda: len(workers()) == 2 and num_saved(results) >= 20, process)
        os.kill(workers()[0], signal.SIGKILL)
        wait(lambda: num_saved(results) >= 80, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, err
    assert "its worker process has died" in err
    done = len(results.read_bytes().splitlines())
    assert 80 <= done < ROWS
    assert f"Interrupted: {done} rows are done and saved in {results}.\nTo go on: pybatch run" in err
    assert f"--ray {cluster.address}" in err
    assert out == ""
    assert workers() == []

    report = tmp_path / "report.html"
    again = subprocess.run([*on_cluster, "--report", str(report)], capture_output=True, text=True, timeout=SECONDS)
    assert again.returncode == 1, again.stderr
    assert f"Going on: {done} rows are done." in again.stderr
    assert "num_kv_blocks" in report.read_text()
    assert subprocess.run([*command, "-o", str(whole)], stderr=subprocess.DEVNULL).returncode == 1
    assert len(whole.read_bytes().splitlines()) == ROWS
    assert results.read_bytes() == whole.read_bytes()
    assert results.with_suffix(".errors.jsonl").read_bytes() == whole.with_suffix(".errors.jsonl").read_bytes()


def test_a_list_comes_back_from_a_cluster_as_from_this_process(cluster: Any, tiny_model: Path) -> None:
    rows = [*({"prompt": f"Say {i}"} for i in range(20)), {"no": "prompt"}]
    settings: dict[str, Any] = {"temperature": 1, "max_tokens": 20, "use_tqdm": False}
    results = pybatch.run_job(rows, tiny_model, ray=cluster.address, **settings)
    assert results == pybatch.run_job(rows, tiny_model, threads=1, num_kv_blocks=128, **settings)
    assert sum("response" in row for row in results) == 20
    body = {"model": "m", "prompt": ["a", "b", "a"], "n": 2}
    batch = [{"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": body} for i in range(20)]
    results = pybatch.run_job(batch, tiny_model, ray=cluster.address, **settings)
    assert results == pybatch.run_job(batch, tiny_model, threads=1, num_kv_blocks=128, **settings)
    assert [len(row["response"]["body"]["choices"]) for row in results] == [6] * 20
    end = time.monotonic() + SECONDS
    while workers():  # one that was still starting
        assert time.monotonic() < end
        time.sleep(0.01)
    with pytest.raises(ValueError, match="model: expected a path or a name, which each of Ray's workers loads"):
        pybatch.run_job(rows, pybatch.LLM(tiny_model), ray=cluster.address)


def test_scores_come_back_from_a_cluster_as_from_this_process(cluster: Any, tmp_path: Path) -> None:
    """Its workers tell what pairs become, which depends on the model."""
    model = saved(random(Qwen3ForSequenceClassification, Qwen3Config, num_labels=1), tmp_path)
    pairs = {"model": "m", "text_1": "a query", "text_2": ["b", "a document"]}
    rows = [{"custom_id": str(i), "method": "POST", "url": "/v1/score", "body": pairs} for i in range(4)]
    results = pybatch.run_job(rows, model, ray=cluster.address, use_tqdm=False)
    assert results == pybatch.run_job(rows, model, threads=1, num_kv_blocks=128, use_tqdm=False)
    assert all(0 < each["score"] < 1 for row in results for each in row["response"]["body"]["data"])


@pytest.mark.parametrize(("address", "reason"), [("nowhere", "expected HOST:PORT"), ("127.0.0.1:1", "no cluster")])
def test_an_address_without_a_cluster_is_wrong_usage(
    address: str, reason: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Say 1"}\n')
    ran = cli("run", prompts, "-o", tmp_path / "out.jsonl", "--model", tiny_model, "--ray", address)
    assert ran.code == 2
    assert f"ray: {reason}" in ran.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl"]


def num_saved(results: Path) -> int:
    journal = results.with_name(f"{results.name}.journal")
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def workers() -> list[int]:
    """The processes of the cluster's workers."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended meanwhile
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::Worker"):
                found.append(process.pid)
    return found


def wait(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, f"it has ended: {process.communicate()[1]}"
        assert time.monotonic() < end, f"not in {SECONDS} seconds"
        time.sleep(0.01)
