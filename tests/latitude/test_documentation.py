"""The examples of docs/latitude.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from latitude_server import latitude_server

PAGE = Path(__file__).parents[2] / "docs" / "latitude.md"


def test_the_examples_run(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 2
    with latitude_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.add_dataset("prompts", [{"id": "one", "input": "Say one"}])
        names: dict[str, object] = {}
        for example in examples:
            exec(example.replace("my-project", "reviews").replace("smollm2-135m", str(tiny_model)), names)
        answers, ids = names["answers"], names["ids"]
        assert isinstance(answers, list)
        assert [bool(row["response"]) for row in answers] == [True, True]
        assert list(server.datasets["answers"]) == ["one"]
        assert ids == ["one", "hello"]
        sessions = [
            each.value.string_value for span in server.spans for each in span.attributes if each.key == "session.id"
        ]
        assert sorted(sessions) == ["ada", "alan"]
        assert len(server.scores) == 4
        assert names["experiment"] == "tone"
        assert [each["name"] for each in server.experiments["tone"]["variants"]] == ["formal", "casual"]
