from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import pybatch
from pybatch import LLM, JobError, SamplingParams

GREEDY = {"temperature": 0, "max_tokens": 4, "use_tqdm": False}
ROWS = [{"prompt": f"Say {i % 3}", "id": i} for i in range(6)]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, num_kv_blocks=128, threads=1)


@pytest.fixture(scope="module")
def responses(llm: LLM) -> list[str]:
    conversations = [[{"role": "user", "content": row["prompt"]}] for row in ROWS]
    outputs = llm.chat(conversations, SamplingParams(temperature=0, max_tokens=4), use_tqdm=False)
    return [output.outputs[0].text for output in outputs]


def test_a_list_comes_back_with_answers(llm: LLM, responses: list[str]) -> None:
    results = pybatch.run_job([*ROWS, {"no": "prompt"}], llm, **GREEDY)
    assert [row.get("response") for row in results] == [*responses, None]
    assert [row.get("id") for row in results] == [*range(6), None]
    assert [row.get("cached", False) for row in results] == [False] * 3 + [True] * 3 + [False]
    assert results[6]["error"].startswith("row 6: the row has neither")


def test_prompts_may_be_strings_and_come_from_an_iterator(tiny_model: Path, responses: list[str]) -> None:
    results = pybatch.run_job(iter(["Say 0", "Say 1"]), tiny_model, num_kv_blocks=128, threads=1, **GREEDY)
    assert [row["response"] for row in results] == responses[:2]


def test_prompts_may_be_token_ids_and_conversations(llm: LLM, responses: list[str]) -> None:
    messages = [{"role": "user", "content": "Say 0"}]
    ids = llm.get_tokenizer().encode_chat(messages)[1]
    results = pybatch.run_job([ids, messages, {"prompt_token_ids": ids, "id": 7}], llm, **GREEDY)
    assert [row["response"] for row in results] == [responses[0]] * 3
    assert [row.get("cached", False) for row in results] == [False, True, True]
    assert results[1]["messages"] == messages


def test_a_token_id_that_no_integer_type_holds_is_its_rows_error(llm: LLM) -> None:
    asks = {"custom_id": "c", "method": "POST", "url": "/v1/completions"}
    for id in (2**31, 2**70, 10**9):
        results = pybatch.run_job([[5, id], "Say 0"], llm, **GREEDY)
        assert f"token id {id} is not in the vocabulary" in results[0]["error"]
        assert "response" in results[1]
        batch = [{**asks, "body": {"model": "tiny", "prompt": [5, id]}}]
        (result,) = pybatch.run_job(batch, llm, **GREEDY)
        assert f"token id {id} is not in" in result["response"]["body"]["error"]["message"]


def test_a_frame_gives_a_frame(llm: LLM, responses: list[str]) -> None:
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    frame = pandas.DataFrame(ROWS, index=list("abcdef"))
    frame["when"] = pandas.Timestamp("2026-01-01")
    joined = pybatch.run_job(frame, llm, **GREEDY)
    assert isinstance(joined, pandas.DataFrame)
    assert list(joined.index) == list("abcdef")
    assert list(joined["response"]) == responses
    assert joined["when"].dtype == frame["when"].dtype
    assert "response" not in frame
    joined = pybatch.run_job(polars.DataFrame(ROWS), llm, **GREEDY)
    assert isinstance(joined, polars.DataFrame)
    assert joined["response"].to_list() == responses
    joined = pybatch.run_job(pyarrow.Table.from_pylist(ROWS), llm, **GREEDY)
    assert isinstance(joined, pyarrow.Table)
    assert joined["response"].to_pylist() == responses


def test_a_column_is_prompts(llm: LLM, responses: list[str]) -> None:
    pandas, polars, pyarrow = (pytest.importorskip(name) for name in ("pandas", "polars", "pyarrow"))
    prompts = ["Say 0", "Say 1"]
    for column in (pandas.Series(prompts), polars.Series(prompts), pyarrow.chunked_array([prompts[:1], prompts[1:]])):
        assert [row["response"] for row in pybatch.run_job(column, llm, **GREEDY)] == responses[:2]


def test_a_frame_with_levels_of_names_is_refused(llm: LLM) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["a", 1]], columns=pandas.MultiIndex.from_tuples([("prompt", ""), ("y", "z")]))
    with pytest.raises(ValueError, match="column names of 2 levels, expected one"):
        pybatch.run_job(frame, llm, **GREEDY)


def test_jobs_in_several_threads_share_a_model(llm: LLM, tmp_path: Path) -> None:
    rows = [f"Say {i}" for i in range(40)]
    expected = pybatch.run_job(rows, llm, **GREEDY)
    with ThreadPoolExecutor(3) as threads:
        jobs = [threads.submit(pybatch.run_job, rows, llm, tmp_path / f"{i}.jsonl", **GREEDY) for i in range(3)]
        assert [job.result(timeout=60) for job in jobs] == [expected] * 3


def test_an_iterators_rows_keep_their_fields(llm: LLM, responses: list[str]) -> None:
    results = pybatch.run_job(iter(ROWS), llm, **GREEDY)
    assert [(row["prompt"], row["id"], row["response"]) for row in results] == [
        (row["prompt"], row["id"], response) for row, response in zip(ROWS, responses, strict=True)
    ]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_batches_in_memory_get_their_results_as_columns(llm: LLM, kind: str) -> None:
    pandas, datasets = (pytest.importorskip(name) for name in ("pandas", "datasets"))
    body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "Say 1"}]}
    asks = {"method": "POST", "url": "/v1/chat/completions", "body": body} if kind == "openai" else {"params": body}
    rows = [{"custom_id": f"c{n}", **asks} for n in range(2)]
    added = "response" if kind == "openai" else "result"
    first = pybatch.run_job(rows, llm, **GREEDY)
    assert [(row["custom_id"], row["row"]) for row in first] == [("c0", 0), ("c1", 1)]
    for row, given in zip(first, rows, strict=True):
        assert given.items() <= row.items()
    for data in (pandas.DataFrame(rows), datasets.Dataset.from_list(rows)):
        joined = pybatch.run_job(data, llm, **GREEDY)
        assert type(joined) is type(data)
        assert list(joined["custom_id"]) == ["c0", "c1"]
        assert list(joined[added]) == [row[added] for row in first]
        assert "finish_reason" not in (joined.columns if hasattr(joined, "columns") else joined.column_names)
    assert [row[added] for row in pybatch.run_job(iter(rows), llm, **GREEDY)] == [row[added] for row in first]


def test_files_give_a_file_and_the_same_call_goes_on(llm: LLM, responses: list[str], tmp_path: Path) -> None:
    rows, output = tmp_path / "in.jsonl", tmp_path / "out.csv"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert pybatch.run_job(rows, llm, output, **GREEDY) == str(output)
    pandas = pytest.importorskip("pandas")
    assert list(pandas.read_csv(output, keep_default_na=False)["response"]) == responses
    steps = llm.engine.metrics.steps
    assert pybatch.run_job(rows, llm, output, **GREEDY) == str(output)
    assert llm.engine.metrics.steps == steps
    with pytest.raises(ValueError, match="is of another job; --fresh starts over"):
        pybatch.run_job(rows, llm, output, seed=7, **GREEDY)
    with pytest.raises(ValueError, match="output: expected a path"):
        pybatch.run_job(rows, llm, **GREEDY)


def test_data_in_memory_with_an_output_goes_on_and_comes_back_each_time(llm: LLM, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = pybatch.run_job(ROWS, llm, output, **GREEDY)
    steps = llm.engine.metrics.steps
    assert pybatch.run_job(ROWS, llm, output, **GREEDY) == first
    assert llm.engine.metrics.steps == steps
    assert [json.loads(line) for line in output.read_text().splitlines()] == first


def test_ctrl_c_keeps_what_is_done(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, metrics = tmp_path / "out.jsonl", llm.engine.metrics
    rows = [{"prompt": f"Say {i}"} for i in range(200)]
    step, start = llm.session.step, metrics.requests

    def interrupt(*arguments: Any, **options: Any) -> None:
        step(*arguments, **options)
        if metrics.requests - start >= 20:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(llm.session, "step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pybatch.run_job(rows, llm, output, **GREEDY)
    done = len(output.read_text().splitlines())
    assert 20 <= done < 200
    before = metrics.requests
    results = pybatch.run_job(rows, llm, output, **GREEDY)
    assert metrics.requests - before == 200 - done
    assert [row["row"] for row in results] == list(range(200))
    assert llm.session.idle


def test_a_job_can_leave_a_report_and_its_cost(llm: LLM, tmp_path: Path) -> None:
    pages = {"report": tmp_path / "report.html", "report_json": tmp_path / "report.json"}
    prices = {"price_per_hour": 36.0, "compare_price": ["mini:1:4"]}
    pybatch.run_job(ROWS, llm, fresh=True, output=tmp_path / "out.jsonl", **pages, **prices, **GREEDY)
    told = json.loads(pages["report_json"].read_text())
    assert (told["status"], told["rows"]) == ("finished", len(ROWS))
    assert told["cost"]["dollars"] == pytest.approx(0.01 * told["seconds"])
    asked = (told["prompt_tokens"] + 4 * told["output_tokens"]) / 1e6
    assert told["cost"]["apis"] == {"mini": pytest.approx(asked)}
    assert "cost by mini" in pages["report"].read_text()
    with pytest.raises(ValueError, match="compare_price: expected a list"):
        pybatch.run_job(ROWS, llm, compare_price="mini:1:4")


def test_the_first_row_that_fails_can_end_the_job(llm: LLM) -> None:
    with pytest.raises(JobError, match="row 1: the row has neither"):
        pybatch.run_job([{"prompt": "a"}, {"no": 1}], llm, on_error="fail", **GREEDY)
    with pytest.raises(JobError, match="row 0: prompt: "):
        pybatch.run_job([{"prompt": "x" * 600}], llm, on_error="fail", **GREEDY)


def test_wrong_arguments_are_named(llm: LLM) -> None:
    with pytest.raises(TypeError, match="temperature"):
        pybatch.run_job(ROWS, llm, temprature=0)
    with pytest.raises(TypeError, match="quantization"):
        pybatch.run_job(ROWS, llm, quantization="int8")
    with pytest.raises(TypeError, match="data: expected a path"):
        pybatch.run_job(7, llm)
    with pytest.raises(ValueError, match="on_error: expected one of skip, fail, got 'stop'"):
        pybatch.run_job(ROWS, llm, on_error="stop")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model: expected a path, a name or an LLM, got NoneType"):
        pybatch.run_job(ROWS, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="output: expected a path or None, got '-'"):
        pybatch.run_job(ROWS, llm, "-")
    for name in ("output", "error_file", "cache", "system", "prompt_template", "ray"):
        with pytest.raises(TypeError, match=f"{name}: expected (a path|text), got int"):
            pybatch.run_job(ROWS, llm, **{name: 7})
