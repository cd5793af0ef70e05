from __future__ import annotations

import json
import math
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cli_command import FAST, Cli

from pybatch.prompts import load, parse
from pybatch.prompts.comparison.statistics import Estimate
from pybatch.prompts.history.report import write_history
from pybatch.prompts.history.store import History, HistoryError, PromptRun, file_for
from pybatch.prompts.history.trends import trends


def run_of(number: int, **other: object) -> PromptRun:
    values = {
        "id": f"run {number}", "time": 1.7e9 + number, "kind": "run", "prompt": "mood", "version": "ab12", "model": "m",
        "data": "rows.jsonl", "rows": 10, "errors": 1, "input_tokens": 900, "output_tokens": 90, "seconds": 2.0,
        "latency_p50": 0.5, "latency_p95": 0.9, "dollars": 0.001,
    }  # fmt: skip
    return PromptRun(**{**values, **other})  # type: ignore[arg-type]


def test_runs_come_back_as_they_were(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    scored = run_of(2, version="cd34", scores={"exact": Estimate(0.5, 0.25, 0.75, 10)}, latency_p50=None)
    history.add([scored, run_of(1)])
    history.add([run_of(3, prompt="other")])
    assert history.runs() == [run_of(1), scored, run_of(3, prompt="other")]
    assert history.runs("mood") == [run_of(1), scored]
    assert history.runs("mood@cd") == [scored]
    assert history.runs("mood@zz") == []
    history.add([run_of(2, rows=20)])
    assert history.runs("mood") == [run_of(1), run_of(2, rows=20)]  # in its place, without its scores


def test_a_score_without_an_interval(tmp_path: Path) -> None:
    history = History(tmp_path / "h.sqlite")
    history.add([run_of(1, scores={"exact": Estimate(1.0, math.nan, math.nan, 1)})])
    (run,) = history.runs()
    assert math.isnan(run.scores["exact"].low)
    assert json.loads(json.dumps(run.to_json(), allow_nan=False))["scores"]["exact"]["low"] is None


def test_what_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        History(tmp_path / "none.sqlite").runs()
    (tmp_path / "text").write_text("a file of something else, long enough to be looked at as a database" * 20)
    with pytest.raises(HistoryError, match="is no history of prompts"):
        History(tmp_path / "text").runs()
    with sqlite3.connect(tmp_path / "later") as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(HistoryError, match="another version of pybatch"):
        History(tmp_path / "later").add([run_of(1)])
    with pytest.raises(OSError, match="cannot be used"):
        History(tmp_path / "no folder" / "h.sqlite").add([run_of(1)])


def test_the_place_of_a_history(tmp_path: Path) -> None:
    file = tmp_path / "prompts" / "reviews" / "mood.prompt"
    file.parent.mkdir(parents=True)
    file.write_text("{text}")
    assert file_for(load("reviews/mood", tmp_path / "prompts")) == tmp_path / "prompts" / "history.sqlite"
    assert file_for(load(file, tmp_path / "none")) == file.parent / "history.sqlite"
    assert file_for(parse("{text}")) is None


def test_trends_have_a_dot_for_each_run_in_its_versions_colour(tmp_path: Path) -> None:
    scores = {"exact": Estimate(0.5, 0.25, 0.75, 10)}
    runs = [run_of(1), run_of(2, version="cd34", scores=scores), run_of(3, version="cd34", dollars=None)]
    made = {trend.frame.title: trend for trend in trends(runs)}
    assert {title: len(trend.points) for title, trend in made.items()} == {
        "Score: exact": 1, "Input tokens a row": 3, "Output tokens a row": 3, "Latency, median": 3,
        "Rows with errors": 3, "Cost a row": 2,
    }  # fmt: skip
    assert [point.color for point in made["Latency, median"].points] == ["first", "second", "second"]
    (dot,) = made["Score: exact"].points
    assert dot.high < dot.y < dot.low
    write_history(str(tmp_path / "h.html"), [run_of(1, prompt="<script>")])
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)  # type: ignore[method-assign]
    parser.feed((tmp_path / "h.html").read_text())
    assert "script" not in tags
    assert tags.count("svg") == 5


def test_run_and_compare_record_and_prompts_history_tells(
    tiny_model: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts").mkdir()
    for name, text in (("short", "Say {text}"), ("long", "Please say {text}")):
        (tmp_path / "prompts" / f"{name}.prompt").write_text(text)
    rows = [{"text": f"number {i}", "label": "x"} for i in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [*FAST, "--price-per-hour", "1"]

    ran = cli("run", "rows.jsonl", "-o", "out.jsonl", "--prompt", "short", "--model", tiny_model, *flags)
    assert ran.code == 0, ran.err
    asked = ["compare", "short", "long", "--data", "rows.jsonl", "--score", "contains:{label}", "--model", tiny_model]
    compared = cli(*asked, *flags, "--json", "compared.json", "--report", "compared.html")
    assert compared.code == 0, compared.err
    assert "6 rows, answered once by 2 variants" in compared.out
    again = cli(*asked, *flags)
    assert again.code == 0, again.err
    assert again.out == compared.out
    told = cli("prompts", "history", "--json", "history.json", "--report", "history.html")
    assert told.code == 0, told.err
    found = json.loads(Path("history.json").read_text())["runs"]
    assert [(run["kind"], run["prompt"], run["rows"], run["errors"]) for run in found] == [
        ("run", "short", 6, 0), ("compare", "short", 6, 0), ("compare", "long", 6, 0),
    ]  # fmt: skip
    usage = [json.loads(line)["usage"] for line in Path("out.jsonl").read_text().splitlines()]
    assert found[0]["input_tokens"] == found[1]["input_tokens"] == sum(each["prompt_tokens"] for each in usage)
    assert found[0]["output_tokens"] == sum(each["completion_tokens"] for each in usage)
    for run in found:
        assert 0 < run["latency_p50"] <= run["latency_p95"]
        assert run["dollars"] == pytest.approx(run["seconds"] / 3600)
    assert found[1]["scores"]["contains:{label}"]["rows"] == 6
    assert cli("prompts", "history", "short").out.count("short@") == 2
    missing = cli("prompts", "history", "nothing")
    assert missing.code == 2
    assert "no run of 'nothing'" in missing.err


def test_history_off(tiny_model: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "a.prompt").write_text("Say {text}")
    (tmp_path / "rows.jsonl").write_text('{"text": "yes"}\n')
    flags = ["--model", tiny_model, *FAST, "--history", "off"]
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    assert cli("run", rows, "-o", out, "--prompt", tmp_path / "a.prompt", *flags).code == 0
    assert not (tmp_path / "history.sqlite").exists()
    refused = cli("run", rows, "-o", tmp_path / "other.jsonl", "--prompt-template", "{text}", *flags)
    assert refused.code == 2
    assert "--history: only the runs of a --prompt" in refused.err
