"""Jobs of rows for /v1/score and /v1/rerank, in OpenAI's batch files, against LLM.score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_command import FAST, Cli
from embedding_models import random, saved, sentence_transformers
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

from pybatch import LLM, run_job

LONG = ["what?", "who?" * 20]


def line(custom_id: str, url: str = "/v1/score", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}}


DOCUMENTS = ["a table", "", "naïve 日本語 <|im_end|>", "a table", "x" * 200]
ROWS = [
    line("one", text_1="a query", text_2="a document"),
    line("many", url="/score", queries="a query", documents=DOCUMENTS),
    line("each", text_1=LONG, text_2=["that", "she"]),
    line("rerank", url="/v1/rerank", query="a query", documents=DOCUMENTS, top_n=3),
    line("embedded", url="/v1/embeddings", input=["a query", "b"]),
    line("bare", url="/v2/rerank", query="who?", documents=["she"], return_documents=False),
    line("repeated", url="/rerank", query="a query", documents=DOCUMENTS),
]
WRONG = [
    (line("w", text_1="a"), "text_2: missing"),
    (line("w", text_1=["a", "b"], text_2=["c", "d", "e"]), "text_1: expected one text, or one for each of 3, got 2"),
    (line("w", queries="a", documents=[3]), "documents: expected text or a list of texts, got 3"),
    (line("w", url="/rerank", query="a", documents=[]), "documents: expected at least one, got []"),
    (line("w", url="/v1/rerank", query="a", documents=["b"], top_n=-1), "top_n: expected at least 0, got -1"),
    (line("w", url="/v3/rerank", query="a", documents=["b"]), "url: expected /v1/chat/completions or "),
    (line("w", url="/v1/score", text_1="a", text_2="b", temperature=1), "temperature: unknown parameter"),
]


@pytest.fixture(scope="module", params=["words", "head", "cosine"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLM:
    kind, more = Qwen3ForCausalLM, {}
    if request.param == "head":
        kind, more = Qwen3ForSequenceClassification, {"num_labels": 1}
    files = None
    if request.param == "cosine":
        files = sentence_transformers(prompts={"query": "Find: "}, default="query", pooling_mode="mean")
    path = saved(random(kind, Qwen3Config, **more), tmp_path_factory.mktemp(request.param), files)
    return LLM(path, threads=1, num_kv_blocks=128, max_num_seqs=4)


def scores(llm: LLM, query: str | list[str], documents: str | list[str]) -> list[float]:
    return [each.outputs.score for each in llm.score(query, documents, use_tqdm=False)]


def bodies(path: Path) -> dict[str, Any]:
    lines = map(json.loads, path.read_text().splitlines())
    return {each["custom_id"]: each["response"]["body"] for each in lines}


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_rows_are_scored_as_llm_does(llm: LLM, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    run_job(written(tmp_path / "in.jsonl", ROWS), llm, out, use_tqdm=False)
    found = bodies(out)
    assert list(found) == [row["custom_id"] for row in ROWS]
    of_documents = scores(llm, "a query", DOCUMENTS)
    assert [each["score"] for each in found["one"]["data"]] == scores(llm, "a query", "a document")
    assert [each["score"] for each in found["many"]["data"]] == of_documents
    assert [each["index"] for each in found["many"]["data"]] == [0, 1, 2, 3, 4]
    assert [each["score"] for each in found["each"]["data"]] == scores(llm, LONG, ["that", "she"])
    order = sorted(range(5), key=lambda i: -of_documents[i])
    for name, shown in (("rerank", 3), ("repeated", 5)):
        expected = [
            {"index": i, "document": {"text": DOCUMENTS[i]}, "relevance_score": of_documents[i]} for i in order[:shown]
        ]
        assert found[name]["results"] == expected
    assert found["bare"]["results"] == [{"index": 0, "relevance_score": scores(llm, "who?", "she")[0]}]
    (alone,) = llm.score("a query", "a document", use_tqdm=False)
    assert found["one"]["usage"]["prompt_tokens"] == len(alone.prompt_token_ids)
    assert found["rerank"]["usage"] == found["many"]["usage"] == found["repeated"]["usage"]


def test_a_job_that_is_stopped_at_any_step_goes_on_to_the_same_bytes(
    llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path / "in.jsonl", ROWS)
    whole, parted = tmp_path / "whole.jsonl", tmp_path / "parted.jsonl"
    run_job(rows, llm, whole, use_tqdm=False)
    run, steps, finished = llm.session.step, 1, False
    while not finished:
        with monkeypatch.context() as patched:
            patched.setattr(llm.session, "step", stopping(run, steps))
            try:
                run_job(rows, llm, parted, use_tqdm=False)
                finished = True
            except OSError:
                steps += 1
    assert steps > 1
    assert parted.read_bytes() == whole.read_bytes()


def stopping(step: Callable[[], None], after: int) -> Callable[[], None]:
    left = [after]

    def stopped() -> None:
        if not left[0]:
            raise OSError("stopped")
        left[0] -= 1
        step()

    return stopped


def test_a_pair_runs_once_and_is_found_again_by_later_jobs(llm: LLM, tmp_path: Path) -> None:
    rows = written(tmp_path / "in.jsonl", [ROWS[1], ROWS[6], {**ROWS[1], "custom_id": "again"}])
    outs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    ran = []
    for out in outs:
        before = llm.engine.metrics.prompt_tokens
        run_job(rows, llm, out, cache=tmp_path / "cache", use_tqdm=False)
        ran.append(llm.engine.metrics.prompt_tokens - before)
    first, second = map(bodies, outs)
    assert first == second
    assert first["again"]["data"] == first["many"]["data"]
    distinct = {tuple(each.prompt_token_ids) for each in llm.score("a query", DOCUMENTS, use_tqdm=False)}
    assert len(distinct) == 4
    assert 0 < ran[0] <= sum(map(len, distinct))
    assert ran[1] == 0


def test_one_documents_error_is_its_rows(llm: LLM, tmp_path: Path) -> None:
    rows = [ROWS[0], line("long", text_1="q", text_2=["d", "x" * 2000]), line("cut", text_1="q", text_2="x" * 2000)]
    rows[2]["body"]["truncate_prompt_tokens"] = -1
    out = tmp_path / "out.jsonl"
    run_job(written(tmp_path / "in.jsonl", rows), llm, out, use_tqdm=False)
    (failed,) = map(json.loads, (tmp_path / "out.errors.jsonl").read_text().splitlines())
    assert failed["custom_id"] == "long"
    error = failed["response"]["body"]["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith("line 2: pair[1]: ")
    (expected,) = llm.score("q", "x" * 2000, truncate_prompt_tokens=-1, use_tqdm=False)
    assert bodies(out)["cut"]["data"][0]["score"] == expected.outputs.score


def test_what_is_wrong_is_told_before_the_model_is_loaded(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    for row, said in WRONG:
        rows = written(tmp_path / "in.jsonl", [{**ROWS[0], "custom_id": "good"}, row])
        ran = cli("run", rows, "-o", tmp_path / "out.jsonl", "--on-error", "fail", "--model", tiny_model, *FAST)
        assert ran.code == 1
        assert f"line 2: {said}" in " ".join(ran.err.split()), ran.err
        assert "Answering" not in ran.err


def test_what_scores_will_take_can_be_told_before(cli: Cli, llm: LLM, tmp_path: Path) -> None:
    rows = written(tmp_path / "in.jsonl", [*ROWS, line("long", text_1="q", text_2=["d", "x" * 2000])])
    model, plan = vars(llm.engine.config)["model"], tmp_path / "plan.json"
    ran = cli("run", rows, "--dry-run", "--json", plan, "--model", model, *FAST)
    assert ran.code == 1
    told = json.loads(plan.read_text())
    assert told["errors"]["context_length_exceeded"]["first"][0].startswith("line 8: pair[1]: ")
    assert (told["rows"], told["rows_failed"]) == (8, 1)
    assert told["repeated_rows"] >= 5  # the documents of "rerank" and "repeated"
