"""A comparison at Latitude."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_command import FAST, Cli
from latitude_server import KEY, PROJECT, latitude_server

import pybatch.prompts
from pybatch import LLM
from pybatch.latitude import LatitudeError

ROWS = [{"text": f"number {i}", "label": "a"} for i in range(6)]


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value for each in span.attributes}


def test_answers_are_traces_that_scores_and_an_experiment_find(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("plain", "Say {text}"), ("polite", "Please say {text}!")):
        (tmp_path / f"{name}.prompt").write_text(text)
    with latitude_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        llm = LLM(tiny_model, num_kv_blocks=128, threads=1)
        options: dict[str, Any] = {"max_tokens": 4, "temperature": 1, "use_tqdm": False, "latitude": PROJECT}
        first, second = "contains:{label}", "regex:^."
        for scorers in ([first], [first], [first, second]):  # what has been posted is posted once
            pybatch.prompts.compare(
                [tmp_path / "plain.prompt", tmp_path / "polite.prompt"],
                ROWS,
                llm,
                score=scorers,
                repeats=2,
                output=tmp_path / "out",
                **options,
            )
        traces = {span.trace_id.hex(): json.loads(attributes(span)["latitude.metadata"]) for span in server.spans}
        assert len(server.spans) == len(traces) == 6 * 2 * 2
        answers = [json.loads(line) for line in (tmp_path / "out" / "scores.jsonl").read_text().splitlines()]
        assert len(server.scores) == len(answers) == 6 * 2 * 2 * 2
        for posted in server.scores:
            of = traces[posted["trace"]["id"]]
            key = of["variant"], int(of["asked_row"]), int(of["repeat"]), posted["sourceId"]
            (own,) = [each for each in answers if (each["variant"], each["row"], each["repeat"], each["scorer"]) == key]
            assert (posted["value"], posted["passed"]) == (own["score"], own["passed"])
        ((slug, made),) = server.experiments.items()
        assert json.loads((tmp_path / "out" / "latitude.json").read_text())["experiment"] == slug
        for variant in made["variants"]:
            wanted = {name.removeprefix("metadata."): of[0]["value"] for name, of in variant["filterSet"].items()}
            found = [of for of in traces.values() if wanted.items() <= of.items()]
            assert (len(found), {of["variant"] for of in found}) == (12, {variant["name"]})
        assert [each["baseline"] for each in made["variants"]] == [True, False]
        assert b"number" not in b"".join(server.bodies)
        assert not [file for file in (tmp_path / "out").rglob("*") if KEY.encode() in file.read_bytes()]

        with pytest.raises(LatitudeError, match="project forbidden: the key"):
            pybatch.prompts.compare(
                [tmp_path / "plain.prompt", tmp_path / "polite.prompt"], ROWS, llm, score="regex:^.",
                **{**options, "latitude": "forbidden"},
            )  # fmt: skip


def test_the_command_does_so_too(cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in (("plain", "Say {text}"), ("{polite}", "Please say {text}!")):
        (tmp_path / f"{name}.prompt").write_text(text)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    compare = ("compare", "plain.prompt", "{polite}.prompt", "--data", "rows.jsonl", "--score", "regex:^.")
    with latitude_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        ran = cli(*compare, "--model", tiny_model, *FAST, "--history", "off", "--latitude", PROJECT)
        assert ran.code == 0
        ((slug, made),) = server.experiments.items()
        assert f"Latitude: {len(server.scores)} scores are posted; the experiment is {slug}." in ran.err
        assert len(server.scores) == 12
        named = {json.loads(attributes(span)["latitude.metadata"])["comparison"] for span in server.spans}
        assert named == {made["name"]}
        ran = cli(*compare, "--model", tiny_model, *FAST, "--latitude", "forbidden")
        assert ran.code == 2
        assert "project forbidden: the key in LATITUDE_API_KEY may not do this" in ran.err
