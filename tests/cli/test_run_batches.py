"""pybatch run over batch files of OpenAI's and Anthropic's, in this process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from anthropic.types.messages import MessageBatchIndividualResponse
from cli_command import FAST, Cli, Ran
from openai.types import Completion
from openai.types.chat import ChatCompletion

from pybatch import LLM, SamplingParams

USER = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def run(cli: Cli, tiny_model: Path) -> Cli:
    def run(*arguments: str | Path) -> Ran:
        return cli("run", *arguments, "--model", tiny_model, *FAST)

    return run


def write(path: Path, *rows: dict[str, Any] | str) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def chat(custom_id: str, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": USER, **more}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


OPENAI = (
    chat("greedy"),
    chat("sampled", temperature=1, seed=5, n=2, max_tokens=3, logprobs=True, top_logprobs=2),
    '{"custom_id": "cut',
    chat("too-long", messages=[{"role": "user", "content": "x" * 600}]),
    chat("greedy"),
    chat("odd", max_tokns=3),
    chat("other", model="another"),
    {"custom_id": "text", "method": "POST", "url": "/v1/completions", "body": {"model": "m", "prompt": ["Hi", "Ho"]}},
)


def test_openais_batch_files_are_answered_as_openai_does(run: Cli, tiny_model: Path, tmp_path: Path) -> None:
    prompts, results = write(tmp_path / "batch.jsonl", *OPENAI), tmp_path / "out.jsonl"
    ran = run("-i", prompts, "-o", results)
    assert ran.code == 1
    lines = read(results)
    assert [line["custom_id"] for line in lines] == ["greedy", "sampled", "text"]
    assert all(line["error"] is None and line["response"]["status_code"] == 200 for line in lines)
    greedy, sampled = (ChatCompletion.model_validate(line["response"]["body"], strict=True) for line in lines[:2])
    completion = Completion.model_validate(lines[2]["response"]["body"], strict=True)
    llm = LLM(tiny_model, num_kv_blocks=128, threads=1)
    (expected,) = llm.chat(USER, SamplingParams(temperature=0, max_tokens=8))
    assert greedy.choices[0].message.content == expected.outputs[0].text
    assert greedy.created == int(prompts.stat().st_mtime)
    (expected,) = llm.chat(USER, SamplingParams(temperature=1, seed=5, n=2, max_tokens=3))
    assert [choice.message.content for choice in sampled.choices] == [each.text for each in expected.outputs]
    assert [len(choice.logprobs.content) for choice in sampled.choices] == [3, 3]  # type: ignore[union-attr, arg-type]
    several = llm.generate(["Hi", "Ho"], SamplingParams(temperature=0, max_tokens=8))
    assert [choice.text for choice in completion.choices] == [each.outputs[0].text for each in several]

    errors = {line["custom_id"] or "": line for line in read(tmp_path / "out.errors.jsonl")}
    faults = {name: line["error"] or line["response"]["body"]["error"] for name, line in errors.items()}
    codes = {name: (fault["code"], fault["message"][:7]) for name, fault in faults.items()}
    assert codes == {
        "": ("invalid_json_line", "line 3:"),
        "too-long": ("context_length_exceeded", "line 4:"),
        "greedy": ("duplicate_custom_id", "line 5:"),
        "odd": ("unknown_parameter", "line 6:"),
        "other": ("mismatched_model", "line 7:"),
    }
    assert {name for name, line in errors.items() if line["error"]} == {"", "greedy"}
    assert {line["response"]["status_code"] for line in errors.values() if not line["error"]} == {400}
    told = ran.err
    assert "4 of 8 rows are bad" in told  # the long one is known of once it is tokenised
    assert 'line 5: custom_id "greedy" was used in line 1' in told
    assert f"5 of 8 rows failed: what is wrong with each is in {tmp_path / 'out.errors.jsonl'}" in told.replace(
        "\n", " "
    )


def test_the_same_batch_gives_the_same_bytes(run: Cli, tmp_path: Path) -> None:
    prompts = write(tmp_path / "batch.jsonl", *OPENAI)
    for name in ("one", "two"):
        assert run(prompts, "-o", tmp_path / f"{name}.jsonl", "--format", "openai-batch").code == 1
    for ending in ("jsonl", "errors.jsonl"):
        assert (tmp_path / f"one.{ending}").read_bytes() == (tmp_path / f"two.{ending}").read_bytes()


def test_with_on_error_fail_a_bad_row_is_told_before_anything_runs(run: Cli, tmp_path: Path) -> None:
    prompts, results = write(tmp_path / "batch.jsonl", *OPENAI), tmp_path / "out.jsonl"
    assert run(prompts, "-o", results, "--on-error", "fail").code == 1
    assert not results.exists()


def test_anthropics_batches_are_answered_as_anthropic_does(run: Cli, tiny_model: Path, tmp_path: Path) -> None:
    params = {"model": "claude", "max_tokens": 5, "messages": USER, "system": "Be brief.", "temperature": 0}
    rows = ({"custom_id": "a", "params": params}, {"custom_id": "b", "params": {**params, "tools": [{"name": "f"}]}})
    results = tmp_path / "out.jsonl"
    assert run(write(tmp_path / "batch.jsonl", *rows), "-o", results).code == 1
    lines = [MessageBatchIndividualResponse.model_validate(line, strict=True) for line in read(results)]
    assert [(line.custom_id, line.result.type) for line in lines] == [("a", "succeeded"), ("b", "errored")]
    chat = [{"role": "system", "content": "Be brief."}, *USER]
    llm = LLM(tiny_model, num_kv_blocks=128, threads=1)
    (expected,) = llm.chat(chat, SamplingParams(temperature=0, max_tokens=5))
    assert lines[0].result.message.content[0].text == expected.outputs[0].text  # type: ignore[union-attr]
    assert read(tmp_path / "out.errors.jsonl") == read(results)[1:]


def test_results_of_equal_requests_keep_the_vendors_shape(run: Cli, tmp_path: Path) -> None:
    params = {"model": "claude", "max_tokens": 5, "messages": USER, "temperature": 0}
    batches = {
        "anthropic": ([{"custom_id": name, "params": params} for name in "ab"], {"custom_id", "result"}),
        "openai": ([chat(name) for name in "ab"], {"id", "custom_id", "response", "error"}),
    }
    for name, (rows, keys) in batches.items():
        results = tmp_path / f"{name}-out.jsonl"
        assert run(write(tmp_path / f"{name}.jsonl", *rows), "-o", results).code == 0
        assert [line.keys() for line in read(results)] == [keys, keys]


def test_a_stream_has_its_failures_among_the_results(run: Cli, tmp_path: Path) -> None:
    ran = run(write(tmp_path / "batch.jsonl", chat("a"), chat("b", foo=1)), "-o", "-")
    assert ran.code == 1
    lines = [json.loads(line) for line in ran.out.splitlines()]
    assert [(line["custom_id"], line["response"]["status_code"]) for line in lines] == [("a", 200), ("b", 400)]


def test_another_format_of_the_same_rows_is_another_job(run: Cli, tmp_path: Path) -> None:
    row = {"prompt": "Hello", **chat("a")}
    prompts, results = write(tmp_path / "batch.jsonl", row, "{"), tmp_path / "out.jsonl"
    assert run(prompts, "-o", results).code == 1
    ran = run(prompts, "-o", results, "--format", "rows")
    assert ran.code == 2
    assert "format" in ran.err
    ran = run(prompts, "-o", results, "--format", "openai-batch", "--system", "x", "--fresh")
    assert ran.code == 2
    assert "system: rows of openai-batch say themselves" in ran.err
