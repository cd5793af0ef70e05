"""A chain over data of every kind, cut where it may be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

import pybatch
from pybatch.jobs.row_runner import RowRunner
from pybatch.prompts import Prompt, PromptError, parse

CHAIN = """---
max_tokens: 4
temperature: 0
steps:
  - name: short
    max_tokens: 3
    prompt: "Shorten: {text}"
  - name: mood
    prompt: "<system>Mood of {text}</system><user>{short}</user>"
---
{short} {mood}
"""
SETTINGS: dict[str, Any] = {"num_kv_blocks": 64, "use_tqdm": False}
TEXTS = ["one", "two", "three", "four"]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> pybatch.LLM:
    return pybatch.LLM(tiny_model, num_kv_blocks=64)


@pytest.fixture(scope="module")
def chain() -> Prompt:
    return parse(CHAIN, name="chain")


@pytest.fixture(scope="module")
def expected(llm: pybatch.LLM, chain: Prompt) -> list[dict[str, str]]:
    """The answers of one row after the other, as conversations of the interface."""
    rows = []
    for text in TEXTS:
        row: dict[str, str] = {"text": text}
        for number, step in enumerate(chain.steps):
            (asked,) = chain.render([row], number)
            messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
            params = pybatch.SamplingParams(**{**chain.config.sampling, **step.sampling})
            (output,) = llm.chat(messages, params, use_tqdm=False)
            row[step.name] = output.outputs[0].text
        rows.append(row)
    return rows


def answers(rows: Any) -> list[dict[str, str]]:
    return [{name: row[name] for name in ("text", "short", "mood", "response")} for row in rows]


def test_rows_in_memory_come_back_with_every_answer(
    llm: pybatch.LLM, chain: Prompt, expected: list[dict[str, str]]
) -> None:
    rows = pybatch.run_job([{"text": text} for text in TEXTS], llm, prompt=chain, use_tqdm=False)
    assert answers(rows) == expected
    assert {row["prompt_version"] for row in rows} == {chain.tag}
    frame = pybatch.run_job(pd.DataFrame({"text": TEXTS}), llm, prompt=chain, use_tqdm=False)
    assert answers(frame.to_dict("records")) == expected


def test_parquet_keeps_its_types_beside_the_answers(
    llm: pybatch.LLM, chain: Prompt, expected: list[dict[str, str]], tmp_path: Path
) -> None:
    pd.DataFrame({"text": TEXTS, "at": pd.date_range("2026-01-01", periods=4)}).to_parquet(tmp_path / "in.parquet")
    pybatch.run_job(tmp_path / "in.parquet", llm, tmp_path / "out.parquet", prompt=chain, use_tqdm=False)
    table = pq.read_table(tmp_path / "out.parquet")
    assert answers(table.to_pylist()) == expected
    assert str(table.schema.field("at").type).startswith("timestamp")


@pytest.mark.parametrize("rows_before", range(0, 12, 3))
def test_a_chain_that_was_cut_goes_on_in_its_step(
    llm: pybatch.LLM, chain: Prompt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_before: int
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    whole = Path(pybatch.run_job(file, llm, tmp_path / "whole.jsonl", prompt=chain, use_tqdm=False)).read_bytes()

    class CutError(Exception):
        pass

    count = 0
    real = RowRunner._finish

    def finish(self: RowRunner, *arguments: Any, **named: Any) -> None:
        nonlocal count
        if count == rows_before:
            raise CutError
        count += 1
        real(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(RowRunner, "_finish", finish)
        with pytest.raises(CutError):
            pybatch.run_job(file, llm, tmp_path / "cut.jsonl", prompt=chain, use_tqdm=False)
    count = 0
    monkeypatch.setattr(RowRunner, "_finish", lambda self, *a, **n: (counted(), real(self, *a, **n))[1])

    def counted() -> None:
        nonlocal count
        count += 1

    pybatch.run_job(file, llm, tmp_path / "cut.jsonl", prompt=chain, use_tqdm=False)
    assert (tmp_path / "cut.jsonl").read_bytes() == whole
    assert count == 12 - rows_before  # what was done has not run again


def test_retried_errors_go_through_all_steps(llm: pybatch.LLM, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ({"text": "a"}, {"txt": "b"})))
    for number in range(2):
        chain = parse(CHAIN, name="chain")
        pybatch.run_job(file, llm, out, prompt=chain, retry_errors=bool(number), use_tqdm=False)
        first, second = map(json.loads, out.read_text().splitlines())
        assert {"short", "mood", "response"} <= first.keys()
        assert second["error"] == "line 2: step 'short': the prompt asks for 'text'; the row has 'txt'"


def test_what_a_chain_cannot_read_or_take_is_refused(llm: pybatch.LLM, chain: Prompt) -> None:
    with pytest.raises(ValueError, match="can be read only once, and a chain reads its rows once a step"):
        pybatch.run_job(iter([{"text": "a"}]), llm, prompt=chain, use_tqdm=False)
    with pytest.raises(ValueError, match="n: a chain takes one answer a step"):
        pybatch.run_job([{"text": "a"}], llm, prompt=chain, n=2, use_tqdm=False)
    with pytest.raises(TypeError, match="prompt: expected a path, a name or a Prompt, got int"):
        pybatch.run_job([{"text": "a"}], llm, prompt=3, use_tqdm=False)  # type: ignore[arg-type]
    rows = pybatch.run_job([{"text": "a", "n": 2}], llm, prompt=chain, use_tqdm=False)
    assert rows[0]["error"] == "row 0: step 'short': expected one answer, got several"


def test_a_step_cannot_ask_for_what_comes_later() -> None:
    for text in ("---\nsteps:\n  - name: a\n    prompt: '{b}'\n  - name: b\n    prompt: x\n---\n{a} {b}",
                 "---\nsteps:\n  - name: b\n    prompt: '{b}'\n---\n{b}"):  # fmt: skip
        with pytest.raises(PromptError, match="asks for 'b', an answer that comes later"):
            parse(text)
