"""A job in which every tenth row is bad, each kind of bad twice: the others are answered as if nothing were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cli_command import FAST, Cli

Command = Callable[..., int]

POISONED: list[tuple[str, bytes, str]] = [  # what is wrong, the line, and how the error goes on after its place
    ("broken JSON", b'{"prompt": "cut', "not valid JSON: "),
    ("a comma too many", b'{"prompt": "a",}', "not valid JSON: "),
    ("bad UTF-8", b'{"prompt": "\xff\xfe"}', "not UTF-8: "),
    ("cut UTF-8", b'{"prompt": "\xe2\x82"}', "not UTF-8: "),
    ("a NUL", b'{"prompt": "a\x00b"}', "not valid JSON: "),
    ("nothing but NULs", b"\x00" * 512, "not valid JSON: "),
    ("50 MB", b'{"prompt": "%s"}' % (b"x" * 50_000_000), ""),
    ("50 MB of broken JSON", b"[" * 50_000_000, ""),
    ("deep nesting", b'{"prompt": %s"a"%s}' % (b"[" * 5000, b"]" * 5000), "not valid JSON: "),
    ("deep nesting beside the prompt", b'{"prompt": "a", "x": %s1%s}' % (b'{"a":' * 5000, b"}" * 5000), "not valid "),
    ("a number out of range", b'{"prompt": "a", "x": 1e400}', "not valid JSON: 1e400 is out of range"),
    ("a number that is none", b'{"prompt": "a", "temperature": NaN}', "not valid JSON: NaN "),
    ("a lone surrogate", rb'{"prompt": "a\ud800"}', "prompt: expected Unicode text"),
    ("one in a message", rb'{"messages": [{"role": "user", "content": "\udfff"}]}', "messages[0].content: expected U"),
    ("too long", b'{"prompt": "%s"}' % (b"x" * 600), "prompt: "),
    ("much too long", b'{"prompt": "%s"}' % (b"x" * 3_000_000), "prompt: "),
    ("a bad parameter", b'{"prompt": "a", "max_tokens": 0}', "max_tokens: expected an integer of at least 1, got 0"),
    ("an unknown one", b'{"prompt": "a", "sampling_params": {"temprature": 1}}', "sampling_params: unknown argument "),
    ("an unknown role", b'{"messages": [{"role": "wizard", "content": "a"}]}', "messages[0].role: unknown role 'wiz"),
    ("a role that is none", b'{"messages": [{"role": 7, "content": "a"}]}', "messages: expected {'role': ..."),
]  # fmt: skip


def good(index: int) -> bytes:
    """Every second one is sampled, with the seed of its place in the job."""
    fields: dict[str, Any] = {"id": f"row-{index}", "prompt": f"Say {index}"}
    return json.dumps(fields | ({"temperature": 1.0} if index % 2 else {})).encode()


def by_row(path: Path) -> dict[int, bytes]:
    return {json.loads(line)["row"]: line for line in path.read_bytes().splitlines()}


def test_bad_rows_fail_alone(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = 10 * len(POISONED)
    poisoned = {10 * i + 3: each for i, each in enumerate(POISONED)}
    found: dict[str, dict[int, bytes]] = {}
    for name, bad in (("clean", {}), ("poisoned", poisoned)):
        prompts, results = tmp_path / f"{name}.jsonl", tmp_path / f"{name}-results.jsonl"
        prompts.write_bytes(b"".join((bad[i][1] if i in bad else good(i)) + b"\n" for i in range(rows)))
        assert cli("run", prompts, "-o", results, "--model", tiny_model, *FAST).code == (1 if bad else 0)
        found[name] = by_row(results)
        assert found[name].keys() == set(range(rows))
    for index in range(rows):
        line = found["poisoned"][index]
        if index not in poisoned:
            assert line == found["clean"][index]
            assert "response" in json.loads(line)
            continue
        kind, _, says = poisoned[index]
        result = json.loads(line)
        assert "response" not in result, kind
        assert result["error"].startswith(f"line {index + 1}: {says}"), (kind, result["error"])
    errors = by_row(tmp_path / "poisoned-results.errors.jsonl")
    assert errors == {index: found["poisoned"][index] for index in poisoned}
    assert not (tmp_path / "clean-results.errors.jsonl").exists()
