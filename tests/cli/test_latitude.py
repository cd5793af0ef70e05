"""pybatch run --latitude: a trace for each row, and none that a job waits for."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_command import FAST, Cli
from latitude_server import KEY, PROJECT, LatitudeServer, Trouble, latitude_server

from pybatch.latitude import trace_id
from pybatch.telemetry import sender as sending

SECRET = "swordfish"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LatitudeServer]:
    with latitude_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{SECRET} {number % 25}", "user_id": f"u{number % 3}"} for number in range(30)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (*rows, {"prompt": 3}, {"prompt": "\ud800"})))
    return path


def attributes(span: Any) -> dict[str, Any]:
    found = {}
    for each in span.attributes:
        kind = each.value.WhichOneof("value")
        value = getattr(each.value, kind)
        found[each.key] = [item.string_value for item in value.values] if kind == "array_value" else value
    return found


def by_row(server: LatitudeServer) -> dict[int, Any]:
    spans = {int(json.loads(attributes(span)["latitude.metadata"])["row"]): span for span in server.spans}
    assert len(spans) == len(server.spans)
    return dict(sorted(spans.items()))


def expect_no_key(folder: Path, *said: str) -> None:
    for text in (*said, *(file.read_bytes().decode("latin-1") for file in folder.rglob("*") if file.is_file())):
        assert KEY not in text


def test_every_row_is_a_trace(cli: Cli, tiny_model: Path, rows: Path, server: LatitudeServer, tmp_path: Path) -> None:
    flags = ("--latitude", PROJECT, "--latitude-tag", "nightly", "--latitude-tag", "v2", "--price-per-hour", "2")
    labels = (
        "--latitude-session",
        "s-{user_id}",
        "--latitude-metadata",
        "team=t {user_id}",
        "--latitude-metadata",
        "k=",
    )
    report = ("--report", tmp_path / "r.html", "--json", tmp_path / "r.json")
    code, out, err = cli(
        "run", rows, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST, *flags, *labels, *report
    )
    assert code == 1
    spans = by_row(server)
    assert list(spans) == list(range(32))
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    header = json.loads((tmp_path / "out.jsonl.journal").read_bytes().split(b"\n")[0][9:])
    job = f"{header['started']} {header['tag']}"
    cost = 0.0
    for row, (number, span) in zip(results, spans.items(), strict=True):
        found = attributes(span)
        assert span.trace_id.hex() == trace_id(job, number)
        assert span.name == "chat tiny0"
        assert (found["gen_ai.provider.name"], found["gen_ai.request.model"]) == ("pybatch", "tiny0")
        assert json.loads(found["latitude.tags"]) == ["nightly", "v2"]
        assert found["latitude.cost.source"] == "user"
        cost += found["gen_ai.usage.total_cost"]
        metadata = json.loads(found["latitude.metadata"])
        assert (metadata.pop("job"), metadata.pop("row"), metadata.pop("k")) == (job, str(number), "")
        if number < 30:
            assert (found["session.id"], metadata) == (f"s-{row['user_id']}", {"team": f"t {row['user_id']}"})
            assert found["gen_ai.usage.input_tokens"] == row["usage"]["prompt_tokens"]
            assert found["gen_ai.usage.output_tokens"] == row["usage"]["completion_tokens"] == 8
            assert found["gen_ai.response.finish_reasons"] == [row["finish_reason"]]
            assert (found["gen_ai.request.max_tokens"], found["gen_ai.request.temperature"]) == (8, 0)
            assert span.status.code == 0
        else:
            assert ("session.id" in found, metadata) == (False, {})
            assert (span.status.code, span.status.message) == (2, found["error.type"])
        seconds = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        if number < 25:
            assert 0 < found["gen_ai.server.time_to_first_token"] / 1e9 <= seconds < 60
        elif number < 30:  # answered by an equal row
            assert (seconds, found["gen_ai.usage.total_cost"]) == (0, 0)
    told = json.loads((tmp_path / "r.json").read_text())
    assert 0.5 < cost / told["cost"]["dollars"] < 1.1
    assert not [body for body in server.bodies if SECRET.encode() in body]
    expect_no_key(tmp_path, out, err)


def test_what_is_said_is_sent_where_that_is_asked_for(
    cli: Cli, tiny_model: Path, rows: Path, server: LatitudeServer, tmp_path: Path
) -> None:
    flags = ("--latitude", PROJECT, "--latitude-content", "--system", "Be brief.")
    cli("run", rows, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST, *flags)
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for row, span in zip(results[:30], by_row(server).values(), strict=False):
        found = attributes(span)
        asked, said = json.loads(found["gen_ai.input.messages"]), json.loads(found["gen_ai.output.messages"])
        assert [(each["role"], each["parts"][0]["content"]) for each in asked] == [
            ("system", "Be brief."),
            ("user", row["prompt"]),
        ]
        (answer,) = said
        assert (answer["role"], answer["parts"]) == ("assistant", [{"type": "text", "content": row["response"]}])
        assert answer["finish_reason"] == row["finish_reason"]


def test_a_prompt_is_named_with_its_version(
    cli: Cli, tiny_model: Path, rows: Path, server: LatitudeServer, tmp_path: Path
) -> None:
    (tmp_path / "greet.prompt").write_text("Hello {user_id}, {prompt}")
    flags = ("--latitude", PROJECT, "--latitude-content", "--prompt", tmp_path / "greet.prompt")
    cli("run", rows, "-o", tmp_path / "out.jsonl", "--model", tiny_model, *FAST, *flags)
    named = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])["prompt_version"]
    first = attributes(by_row(server)[0])
    assert f"{first['gen_ai.prompt.name']}@{first['gen_ai.prompt.version']}" == named
    metadata = json.loads(first["latitude.metadata"])
    assert f"{metadata['prompt']}@{metadata['prompt_version']}" == named
    assert json.loads(first["gen_ai.input.messages"])[0]["parts"][0]["content"] == f"Hello u0, {SECRET} 0"


@pytest.mark.parametrize("trouble", ["down", "slow", "429", "500", "401"])
def test_a_collector_that_fails_costs_its_traces_alone(
    cli: Cli,
    tiny_model: Path,
    rows: Path,
    server: LatitudeServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    trouble: str,
) -> None:
    monkeypatch.setattr(sending, "CLOSING", 0.5)
    run = ("run", rows, "--model", tiny_model, *FAST)
    without = cli(*run, "-o", tmp_path / "without.jsonl")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        if trouble == "down":
            monkeypatch.setenv("LATITUDE_TELEMETRY_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        elif trouble == "slow":
            server.troubles.append(Trouble(0, seconds=60))
        else:
            server.troubles.append(Trouble(int(trouble)))
        began = time.monotonic()
        code, _, err = cli(*run, "-o", tmp_path / "with.jsonl", "--latitude", PROJECT)
        assert time.monotonic() - began < 30
    assert code == without.code == 1
    for ending in ("jsonl", "errors.jsonl"):
        assert (tmp_path / f"with.{ending}").read_bytes() == (tmp_path / f"without.{ending}").read_bytes()
    assert err.count("Latitude: traces are lost, and nothing else") == 1
    assert err.count("opentelemetry") == err.count("Traceback") == 0
    expect_no_key(tmp_path, err)


def test_what_is_wrong_is_told_before_the_model_loads(
    cli: Cli, rows: Path, server: LatitudeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expect(message: str, *flags: str) -> None:
        code, _, err = cli("run", rows, "-o", tmp_path / "out.jsonl", "--model", "no-such-model", *flags)
        assert code == 2
        assert message in " ".join(err.replace("│", " ").split())
        expect_no_key(tmp_path, err)

    expect("latitude: expected the slug of a project, such as my-name, got 'a/b'", "--latitude", "a/b")
    expect("latitude_tag: is for traces, which go to a project: --latitude PROJECT", "--latitude-tag", "x")
    expect("latitude_metadata: expected NAME=TEXT, got 'x'", "--latitude", PROJECT, "--latitude-metadata", "x")
    expect("only {field} is known", "--latitude", PROJECT, "--latitude-session", "{}")
    monkeypatch.setenv("LATITUDE_TELEMETRY_URL", "ftp://x")
    expect("LATITUDE_TELEMETRY_URL: expected an http or https address", "--latitude", PROJECT)
    monkeypatch.setenv("LATITUDE_API_KEY", f"{KEY} {KEY}")
    expect("LATITUDE_API_KEY: expected an API key of Latitude, got text with blanks", "--latitude", PROJECT)
    monkeypatch.delenv("LATITUDE_API_KEY")
    expect("LATITUDE_API_KEY: expected an API key of Latitude in this variable", "--latitude", PROJECT)
