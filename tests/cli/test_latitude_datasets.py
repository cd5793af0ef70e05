"""pybatch run latitude:prompts -o latitude:results."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_command import COMMAND, FAST, Cli
from latitude_server import KEY, PROJECT, LatitudeServer, Trouble, latitude_server

import pybatch
from pybatch.latitude import trace_id


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[LatitudeServer]:
    monkeypatch.setattr("latitude_sdk.core.http_client.INITIAL_RETRY_DELAY_SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    with latitude_server() as server:
        for name, value in {**server.environment, "LATITUDE_PROJECT_SLUG": PROJECT}.items():
            monkeypatch.setenv(name, value)
        yield server


ROWS: list[dict[str, Any]] = [
    {"id": "text", "input": "Say one", "expectedOutput": 5, "metadata": {"team": "a"}},
    {"id": "object", "input": {"prompt": "Say two", "temperature": 0.5}, "output": "two", "custom": {"k": True}},
    {"id": "list", "input": [{"role": "user", "content": "Say three"}], "metadata": "m"},
    {"id": "bad", "input": 7},
    {"id": "clash", "input": {"prompt": "Say four", "metadata": "own", "row_id": "text"}, "metadata": "other"},
]


def results_of(server: LatitudeServer, dataset: str) -> dict[str, dict[str, Any]]:
    return {id: dict(row) for id, row in server.datasets[dataset].items()}


def test_a_dataset_in_and_a_dataset_out(cli: Cli, tiny_model: Path, server: LatitudeServer, tmp_path: Path) -> None:
    server.add_dataset("prompts", ROWS)
    run = ("run", "latitude:prompts", "-o", "latitude:results", "--model", tiny_model, *FAST)
    code, _, err = cli(*run)
    assert code == 1
    assert "1 of 5 rows failed: what is wrong with each is in latitude-reviews-results.errors.jsonl" in err
    (failed,) = (tmp_path / "latitude-reviews-results.errors.jsonl").read_text().splitlines()
    assert json.loads(failed)["error"].startswith("row bad: the row has neither 'prompt' nor 'messages'")
    header = json.loads((tmp_path / "latitude-reviews-results.journal").read_bytes().split(b"\n")[0][9:])
    job = f"{header['started']} {header['tag']}"
    results = results_of(server, "results")
    assert list(results) == [row["id"] for row in ROWS]
    inputs = [
        "Say one", {"prompt": "Say two", "temperature": 0.5}, {"messages": ROWS[2]["input"]}, {"input": 7},
        ROWS[4]["input"],
    ]  # fmt: skip
    for number, (row, asked) in enumerate(zip(results.values(), inputs, strict=True)):
        told = row["metadata"]["pybatch"]
        assert (told["row"], told["trace_id"]) == (number, trace_id(job, number))
        assert row["input"] == asked
        assert (row["output"] is None) == (number == 3)
        assert number == 3 or told["usage"]["completion_tokens"] == 8
    assert results["text"]["expectedOutput"] == 5
    assert results["text"]["metadata"]["team"] == "a"
    assert results["object"]["metadata"]["custom"] == {"k": True}
    assert results["object"]["metadata"]["earlier_output"] == "two"
    assert results["list"]["metadata"]["metadata"] == "m"
    assert results["clash"]["metadata"]["metadata"] == "other"
    assert "row bad" in results["bad"]["metadata"]["pybatch"]["error"]

    code, _, err = cli(*run)
    assert code == 1
    assert "Done already: 5 rows in latitude:reviews/results, 1 of them failed" in err
    server.datasets["prompts"].popitem()
    code, _, err = cli(*run)
    assert code == 2
    assert "latitude-reviews-results.journal is of another job; --fresh starts over" in err
    assert cli(*run, "--fresh").code == 1


def test_rows_from_files_have_ids_of_their_own(
    cli: Cli, tiny_model: Path, server: LatitudeServer, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "row_id": "x"}\n{"prompt": "b", "row_id": "x"}\n')
    cli("run", "rows.jsonl", "-o", "latitude:out", "--model", tiny_model, *FAST)
    assert [row["input"]["row_id"] for row in results_of(server, "out").values()] == ["x", "x"]
    batch = [
        {
            "custom_id": f"r {n}" if n else "r-0",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"model": "tiny", "prompt": "a", "max_tokens": 2},
        }
        for n in range(2)
    ]
    (tmp_path / "batch.jsonl").write_text("".join(json.dumps(row) + "\n" for row in batch))
    cli("run", "batch.jsonl", "-o", "latitude:batch", "--model", tiny_model, *FAST)
    first, second = results_of(server, "batch").values()
    assert (first["rowId"], first["output"]["custom_id"], second["output"]["custom_id"]) == ("r-0", "r-0", "r 1")
    assert first["output"]["response"]["status_code"] == 200


def test_pages_in_the_order_in_which_rows_were_added(
    cli: Cli, tiny_model: Path, server: LatitudeServer, tmp_path: Path
) -> None:
    server.add_dataset("prompts", [{"id": f"r{n}", "input": f"Say {n % 7}"} for n in range(450)])
    server.troubles.append(Trouble(500, "rows", times=2))
    server.troubles.append(Trouble(429, "rows.*cursor", times=1, headers={"retry-after": "1"}))
    flags = ("--latitude", PROJECT)
    code, _, _ = cli("run", f"latitude:{PROJECT}/prompts", "-o", "out.jsonl", "--model", tiny_model, *FAST, *flags)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["row_id"] for row in rows] == [f"r{n}" for n in range(450)]
    asked = [path for method, path in server.requests if method == "GET" and "rows" in path]
    assert len(asked) == 3 + 3
    assert len(server.spans) == 450


def test_results_that_do_not_fit_go_in_parts(cli: Cli, tiny_model: Path, server: LatitudeServer) -> None:
    server.add_dataset("prompts", [{"id": f"r{n}", "input": f"Say {n % 7}"} for n in range(300)])
    server.troubles.append(Trouble(413, "results/rows", largest=20_000))
    assert cli("run", "latitude:prompts", "-o", "latitude:results", "--model", tiny_model, *FAST).code == 0
    assert list(server.datasets["results"]) == [f"r{n}" for n in range(300)]


def test_what_latitude_does_not_take_is_kept_and_goes_there_with_the_same_command(
    cli: Cli, tiny_model: Path, server: LatitudeServer
) -> None:
    server.add_dataset("prompts", [{"id": f"r{n}", "input": f"Say {n}"} for n in range(20)])
    server.troubles.append(Trouble(503, "results/rows"))
    run = ("run", "latitude:prompts", "-o", "latitude:results", "--model", tiny_model, *FAST)
    code, _, err = cli(*run)
    assert code == 3
    assert "latitude:reviews/results: it answers 503, also after waiting (trouble with [the key])" in err
    assert "20 rows are saved" in err
    assert KEY not in err
    server.troubles.clear()
    code, _, err = cli(*run)
    assert code == 0
    assert "Going on: 20 rows are done" in err
    assert len(server.datasets["results"]) == 20


def test_a_killed_job_goes_on(tiny_model: Path, server: LatitudeServer, cli: Cli, tmp_path: Path) -> None:
    server.add_dataset("prompts", [{"id": f"r{n}", "input": f"Say {n}"} for n in range(150)])
    run = ["run", "latitude:prompts", "-o", "latitude:results", "--model", str(tiny_model), *FAST]
    journal = tmp_path / "latitude-reviews-results.journal"
    process = subprocess.Popen([*COMMAND, *run], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 20):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not server.datasets.get("results")
    code, _, err = cli(*run)
    assert code == 0
    assert "Going on: " in err
    assert list(server.datasets["results"]) == [f"r{n}" for n in range(150)]
    assert all(row["output"] for row in server.datasets["results"].values())


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (400, "latitude:reviews/prompts: it takes the request for a wrong one (trouble with [the key])"),
        (401, "latitude:reviews/prompts: it does not know the key in LATITUDE_API_KEY"),
        (403, "latitude:reviews/prompts: the key in LATITUDE_API_KEY may not do this"),
        (404, "latitude:reviews/prompts: it has no such project, data set or trace"),
        (413, "latitude:reviews/prompts: it is too large"),
        (429, "latitude:reviews/prompts: it has had too many requests of this key, also after waiting"),
        (500, "latitude:reviews/prompts: it answers 500, also after waiting"),
        (302, "latitude:reviews/prompts: "),
    ],
)
def test_errors_have_names(cli: Cli, server: LatitudeServer, status: int, message: str) -> None:
    server.add_dataset("prompts", ROWS)
    server.troubles.append(Trouble(status))
    code, _, err = cli("run", "latitude:prompts", "-o", "out.jsonl", "--model", "no-such-model")
    assert code == 2
    assert message in err
    assert KEY not in err


def test_what_is_wrong_is_told_before_the_model_loads(
    cli: Cli, tiny_model: Path, server: LatitudeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pybatch.api.llm.LLM.__init__", None)

    def expect(message: str, *arguments: str) -> None:
        code, _, err = cli("run", *arguments, "--model", tiny_model)
        assert code == 2
        assert message in " ".join(err.split())

    server.add_dataset("prompts", ROWS)
    expect("need a data set of their own", "latitude:prompts", "-o", "latitude:reviews/prompts")
    expect("expected the slug of a data set, such as my-name, got ''", "latitude:", "-o", "x")
    expect("forbidden/a: the key in LATITUDE_API_KEY may not", "latitude:forbidden/a", "-o", "x")
    expect("project forbidden: the key", "latitude:prompts", "-o", "latitude:forbidden/a")
    expect("expected an output of JSON Lines", "latitude:prompts", "-o", "latitude:results", "--unordered")
    expect("format: is for files", "latitude:prompts", "-o", "x", "--input-format", "csv")
    monkeypatch.setenv("LATITUDE_API_URL", "http://127.0.0.1:1")
    expect("latitude:reviews/prompts: http://127.0.0.1:1 cannot be reached", "latitude:prompts", "-o", "x")
    monkeypatch.delenv("LATITUDE_PROJECT_SLUG")
    expect("expected the slug of a project, as PROJECT/DATASET, --latitude", "latitude:prompts", "-o", "x")


def test_from_python(tiny_model: Path, server: LatitudeServer) -> None:
    server.add_dataset("prompts", ROWS[:2])
    llm = pybatch.LLM(tiny_model, num_kv_blocks=64, threads=1)
    arguments = {"temperature": 0, "max_tokens": 4, "use_tqdm": False}
    out = pybatch.run_job("latitude:prompts", llm, "latitude:results", latitude=PROJECT, **arguments)
    assert out == f"latitude:{PROJECT}/results"
    assert list(server.datasets["results"]) == ["text", "object"]
    assert len(server.spans) == 2


def test_the_last_step_of_a_chain_goes_to_the_dataset(
    cli: Cli, tiny_model: Path, server: LatitudeServer, tmp_path: Path
) -> None:
    server.add_dataset("prompts", [{"id": f"r{n}", "input": f"Say {n}"} for n in range(3)])
    steps = "---\nsteps:\n  - name: short\n    prompt: 'Shorten: {prompt}'\n---\nIs it good? {short}\n"
    (tmp_path / "chain.prompt").write_text(steps)
    run = ("run", "latitude:prompts", "-o", "latitude:answers", "--prompt", "chain.prompt", "--model", tiny_model)
    assert cli(*run, *FAST).code == 0
    first = (tmp_path / "latitude-reviews-answers.1-short.jsonl").read_text().splitlines()
    for number, (row, line) in enumerate(zip(results_of(server, "answers").values(), first, strict=True)):
        assert row["rowId"] == f"r{number}"
        assert row["input"]["short"] == json.loads(line)["response"]
        assert row["output"]
