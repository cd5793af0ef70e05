"""Scores, experiments and errors, by the real SDK."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from latitude_server import KEY, PROJECT, LatitudeServer, Trouble, latitude_server

from pybatch.latitude import Access, LatitudeError, Project, ScoredRow, labels, post_comparison, trace_id


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LatitudeServer]:
    monkeypatch.setattr("latitude_sdk.core.http_client.INITIAL_RETRY_DELAY_SECONDS", 0.01)
    with latitude_server() as server:
        yield server


@pytest.fixture
def project(server: LatitudeServer) -> Project:
    return Project(Access.from_environment(PROJECT, server.environment))


def test_a_comparison_is_scores_and_an_experiment(project: Project, server: LatitudeServer) -> None:
    server.troubles.append(Trouble(503, "scores", times=3))
    scored = [
        ScoredRow(variant, trace_id("job", row), row / 10, row > 5, "exact", f"row {row}", 0.25, 7, 0.0002)
        for row in range(10)
        for variant in ("a", "b")
    ]
    slug = post_comparison(project, "Tone of voice", ["a", "b"], scored, description="which is kinder")
    assert slug == "tone-of-voice"
    assert len(server.scores) == 20
    one = next(each for each in server.scores if (each["value"], each["metadata"]["variant"]) == (0.7, "b"))
    assert one["trace"] == {"by": "id", "id": trace_id("job", 7)}
    assert (one["passed"], one["sourceId"], one["feedback"]) == (True, "exact", "row 7")
    assert (one["duration"], one["tokens"], one["cost"]) == (250_000_000, 7, 20_000)
    assert one["metadata"] == labels("Tone of voice", "b")
    made = server.experiments[slug]
    assert (made["name"], made["description"]) == ("Tone of voice", "which is kinder")
    assert [(each["name"], each["baseline"]) for each in made["variants"]] == [("a", True), ("b", False)]
    assert made["variants"][1]["filterSet"] == {
        "metadata.comparison": [{"op": "eq", "value": "Tone of voice"}],
        "metadata.variant": [{"op": "eq", "value": "b"}],
    }


def test_what_cannot_be_posted_is_an_error_by_name(project: Project, server: LatitudeServer) -> None:
    row = ScoredRow("c", trace_id("job", 1), 0.5, True, "exact")
    with pytest.raises(ValueError, match="expected a variant of a, b, got 'c'"):
        post_comparison(project, "x", ["a", "b"], [row])
    with pytest.raises(ValueError, match=r"value: expected 0 to 1, got 1\.5"):
        project.score(trace_id("job", 1), 1.5, passed=True, source="x")
    with pytest.raises(ValueError, match="variants: expected two or more, got 1"):
        project.create_experiment("x", {"a": {}})
    server.troubles.append(Trouble(404))
    with pytest.raises(LatitudeError, match=r"a score of the trace \w+ in reviews: it has no such") as caught:
        project.score(trace_id("job", 1), 0.5, passed=True, source="x")
    assert caught.value.status == 404


def test_no_text_of_it_has_the_key(project: Project, server: LatitudeServer) -> None:
    """Not even where the server's answer has it."""
    server.troubles.append(Trouble(401))
    with pytest.raises(LatitudeError, match=r"trouble with \[the key\]") as caught:
        list(project.rows("prompts"))
    error: BaseException | None = caught.value
    assert caught.value.__suppress_context__
    assert KEY not in f"{error} {error!r} {project.access} {project.access!r} {vars(project)}"


def test_tries_are_spread_and_limited(project: Project, server: LatitudeServer) -> None:
    server.troubles.append(Trouble(429, headers={"retry-after": "1"}, times=1))
    server.troubles.append(Trouble(502))
    with pytest.raises(LatitudeError, match="it answers 502, also after waiting"):
        list(project.rows("prompts"))
    waits = [later - sooner for sooner, later in zip(server.times, server.times[1:], strict=False)]
    assert len(waits) == 5
    assert 0.95 < waits[0] < 10  # as it was told
    assert all(0.9 * 0.01 * 2**number <= wait for number, wait in enumerate(waits) if number)


def test_an_answer_of_something_else_is_an_error(project: Project, server: LatitudeServer) -> None:
    server.troubles.append(Trouble(200))
    with pytest.raises(LatitudeError, match="answers what Latitude does not"):
        list(project.rows("prompts"))


def test_a_dataset_that_gets_another_slug_is_told(project: Project) -> None:
    project.expect_dataset("my-data")
    with pytest.raises(LatitudeError, match="Latitude has made my-data of that name: use this one"):
        project.expect_dataset("My_Data")
