"""Batches with the `openai` client."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pyarrow.parquet as pq
import pytest
from batch_files import chat_row, create, ended, json_lines, lines_of, until
from live_server import Server
from openai.types import Completion
from openai.types.chat import ChatCompletion

from pybatch import LLM, SamplingParams

HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
LONG = {"max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> LLM:
    return LLM(tiny_model, threads=1, num_kv_blocks=64)


def test_every_row_has_its_answer_or_its_error(client: openai.OpenAI) -> None:
    rows = [chat_row(number) for number in range(200)]
    rows[7]["body"]["max_tokens"] = "many"
    rows[11]["body"]["messages"] = [{"role": "user", "content": "a" * 600}]
    batch = create(client, json_lines(rows), metadata={"who": "me"}, output_expires_after=expires(7200))
    assert batch.metadata == {"who": "me"}
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert batch.errors is None
    assert batch.model == "tiny"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (200, 198, 2)
    assert batch.in_progress_at is not None
    assert batch.finalizing_at is not None
    assert batch.completed_at is not None
    assert batch.expires_at == batch.created_at + 86_400
    assert batch.created_at <= batch.in_progress_at <= batch.finalizing_at <= batch.completed_at

    answers = lines_of(client, batch.output_file_id)
    assert [line["custom_id"] for line in answers] == [f"row-{i}" for i in range(200) if i not in (7, 11)]
    bodies = [ChatCompletion.model_validate(line["response"]["body"], strict=True) for line in answers]
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in answers)
    assert batch.usage is not None
    assert batch.usage.output_tokens == sum(body.usage.completion_tokens for body in bodies if body.usage)
    assert batch.usage.input_tokens == sum(body.usage.prompt_tokens for body in bodies if body.usage)
    alone = client.chat.completions.create(**rows[4]["body"])  # greedy, so that its draws need no seed
    assert bodies[4].choices == alone.choices

    errors = lines_of(client, batch.error_file_id)
    assert [(line["custom_id"], line["error"], line["response"]["status_code"]) for line in errors] == [
        ("row-7", None, 400),
        ("row-11", None, 400),
    ]
    refused = [line["response"]["body"]["error"] for line in errors]
    assert [error["code"] for error in refused] == ["invalid_value", "context_length_exceeded"]
    assert "max_tokens: " in refused[0]["message"]
    for id in (batch.output_file_id, batch.error_file_id):
        file = client.files.retrieve(str(id))
        assert (file.purpose, file.expires_at) == ("batch_output", file.created_at + 7200)
        assert file.filename.startswith(batch.id)


def expires(seconds: int) -> dict[str, Any]:
    return {"anchor": "created_at", "seconds": seconds}


def raw(llm: LLM, prompt: str, tokens: int) -> str:
    (output,) = llm.generate(prompt, SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
    return output.outputs[0].text


def test_completions_too(client: openai.OpenAI, llm: LLM) -> None:
    url = "/v1/completions"
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "temperature": 0}
    row = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    batch = ended(client, create(client, json_lines([row]), endpoint=url))
    (line,) = lines_of(client, batch.output_file_id)
    answer = Completion.model_validate(line["response"]["body"], strict=True)
    assert [choice.text for choice in answer.choices] == [raw(llm, "Once", 4)]
    assert batch.error_file_id is None


@pytest.mark.parametrize(
    ("content", "errors"),
    [
        (b"", [("empty_file", None, None)]),
        (b"\n \n", [("empty_file", None, None)]),
        (b'{"custom_id": \n', [("invalid_json_line", 1, None)]),
        (json_lines([chat_row(1), chat_row(2), chat_row(1)]), [("duplicate_custom_id", 3, "custom_id")]),
        (json_lines([chat_row(1), {**chat_row(2), "url": "/v1/completions"}]), [("invalid_url", 2, "url")]),
        (json_lines([{**chat_row(2), "url": "/v1/embeddings"}]), [("invalid_url", 1, "url")]),
        (json_lines([{**chat_row(2), "method": "GET"}]), [("invalid_method", 1, "method")]),
        (json_lines([chat_row(1, model="other")]), [("model_not_found", 1, "model")]),
        (json_lines([chat_row(1, model=None)]), [("missing_required_parameter", 1, "model")]),
        (b'{"custom_id": "\\ud800", "method": "\\ud800"}', [("invalid_method", 1, "method")]),
        (json_lines([chat_row(1)]).replace(b"row-1", b"\\ud800") * 2, [("duplicate_custom_id", 2, "custom_id")]),
        (b'{"method": "POST"}\n3\n', [("missing_required_parameter", 1, "custom_id"), ("invalid_json_line", 2, None)]),
    ],
)
def test_a_line_that_is_no_request_fails_the_batch(
    client: openai.OpenAI, content: bytes, errors: list[tuple[Any, ...]]
) -> None:
    batch = ended(client, create(client, content))
    assert (batch.status, batch.output_file_id, batch.error_file_id) == ("failed", None, None)
    assert batch.failed_at is not None
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert [(each.code, each.line, each.param) for each in batch.errors.data or ()] == errors
    assert all(each.message for each in batch.errors.data or ())


def test_what_cannot_be_a_batch_is_refused(client: openai.OpenAI) -> None:
    for arguments, message in (
        ({"endpoint": "/v1/images"}, "endpoint: expected /v1/chat/completions or /v1/completions or /v1/embeddings"),
        ({"endpoint": "/v1/embeddings", "extra_body": {"mapping": {}}}, "mapping: expected none with /v1/embeddings"),
        ({"completion_window": "soon"}, "completion_window: expected '24h'"),
        ({"completion_window": "31d"}, "completion_window: expected '24h'"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata: expected at most 16 keys, got 17"),
        ({"metadata": {"a": "b" * 513}}, "metadata.a: expected at most 64 characters in a key and 512 in a value"),
        ({"metadata": {"a": 1}}, "metadata.a: expected text, got 1"),
        ({"output_expires_after": expires(5)}, "output_expires_after.seconds: expected 3,600 to 2,592,000, got 5"),
        ({"extra_body": {"maping": {}}}, "maping: unknown parameter; did you mean 'mapping'?"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            create(client, b"", **arguments)
        assert error.value.body["message"].startswith(message)  # type: ignore[index]
    with pytest.raises(openai.NotFoundError, match="there is no file 'file-none'"):
        client.batches.create(input_file_id="file-none", endpoint="/v1/completions", completion_window="24h")
    for act in (client.batches.retrieve, client.batches.cancel):
        with pytest.raises(openai.NotFoundError, match="there is no batch 'batch_none'"):
            act("batch_none")


def test_a_batch_that_is_cancelled_keeps_what_is_done(client: openai.OpenAI) -> None:
    rows = [chat_row(number, **(LONG if number > 40 else {})) for number in range(120)]
    batch = create(client, json_lines(rows))
    until(lambda: client.batches.retrieve(batch.id), lambda now: done(now) > 5)
    began = time.monotonic()
    cancelling = client.batches.cancel(batch.id)
    assert cancelling.status == "cancelling"
    assert cancelling.cancelling_at is not None
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch)
    assert time.monotonic() - began < 15
    assert batch.status == "cancelled"
    assert batch.cancelled_at is not None
    answered, rest = lines_of(client, batch.output_file_id), lines_of(client, batch.error_file_id)
    assert {line["custom_id"] for line in (*answered, *rest)} == {row["custom_id"] for row in rows}
    assert len(answered) + len(rest) == 120
    assert {(line["error"]["code"], line["response"]) for line in rest} == {("batch_cancelled", None)}
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (120, len(answered), 0)
    assert client.batches.cancel(batch.id) == batch


def done(batch: openai.types.Batch) -> int:
    return batch.request_counts.completed if batch.request_counts else 0


def test_a_batch_may_be_cancelled_at_once(client: openai.OpenAI) -> None:
    """Before it is checked, most likely."""
    batch = create(client, json_lines(chat_row(i, **LONG) for i in range(3000)))
    assert client.batches.cancel(batch.id).status == "cancelling"
    batch = ended(client, batch)
    counts = batch.request_counts
    assert counts is not None
    assert (batch.status, counts.total, counts.failed) == ("cancelled", 3000, 0)
    assert len(lines_of(client, batch.error_file_id)) == 3000 - counts.completed


def test_a_batch_that_has_ended_cannot_be_cancelled(client: openai.OpenAI) -> None:
    batch = ended(client, create(client, b""))
    with pytest.raises(openai.BadRequestError, match="cannot be cancelled any more: it is failed"):
        client.batches.cancel(batch.id)


def test_two_batches_and_chat_run_at_the_same_time(client: openai.OpenAI) -> None:
    batches = [create(client, json_lines(chat_row(i, **LONG) for i in range(24))) for _ in range(2)]
    until(lambda: [client.batches.retrieve(batch.id) for batch in batches], lambda now: all(map(done, now)))
    answer = client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)
    assert answer.choices[0].finish_reason == "length"
    assert any(client.batches.retrieve(batch.id).status == "in_progress" for batch in batches)
    assert [ended(client, batch).status for batch in batches] == ["completed", "completed"]


def test_a_batch_needs_its_file_no_more_once_it_is_created(client: openai.OpenAI) -> None:
    batch = create(client, json_lines(chat_row(i) for i in range(20)))
    assert client.files.delete(batch.input_file_id).deleted
    assert ended(client, batch).status == "completed"


def test_lists_come_in_pages_with_the_newest_first(client: openai.OpenAI) -> None:
    ids = [create(client, b"").id for _ in range(5)]
    assert [batch.id for batch in client.batches.list(limit=2)][:5] == ids[::-1]
    page = client.batches.list(limit=2, after=ids[4])
    assert ([batch.id for batch in page.data], page.has_more) == ([ids[3], ids[2]], True)


def test_rows_of_any_shape_are_mapped(client: openai.OpenAI) -> None:
    mapping = {
        "prompt_template": "Translate {text}",
        "params": {"max_tokens": 5, "temperature": 0},
        "output": {"key": "{id}", "answer": "{response}", "told": "{id}: {finish_reason}", "usage": "{usage}"},
    }
    content = b'id,text,max_tokens\n1,hello,\n2,"a, b",4\n3,x,0\n'
    batch = ended(client, create(client, content, "in.csv", extra_body={"mapping": mapping}))
    assert batch.mapping == mapping  # type: ignore[attr-defined]
    file = client.files.retrieve(str(batch.output_file_id))
    assert file.filename == f"{batch.id}_output.csv"
    expected = [ask(client, "Translate hello", 5), ask(client, "Translate a, b", 4)]
    rows = table(client.files.content(file.id).text)
    assert [(row["key"], row["answer"], row["told"]) for row in rows[:2]] == [
        ("1", expected[0], "1: length"),
        ("2", expected[1], "2: length"),
    ]
    assert json.loads(rows[0]["usage"])["completion_tokens"] == 5
    assert (rows[2]["key"], rows[2]["answer"]) == ("3", "")
    assert rows[2]["error"].startswith("line 4: max_tokens: ")
    (failed,) = lines_of(client, batch.error_file_id)
    assert (failed["key"], failed["answer"], failed["error"]) == ("3", None, rows[2]["error"])


def ask(client: openai.OpenAI, text: str, tokens: int) -> str | None:
    messages: list[Any] = [{"role": "user", "content": text}]
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=tokens, temperature=0)
    return answer.choices[0].message.content


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_a_mapping_can_ask_for_another_format_and_for_raw_prompts(client: openai.OpenAI, llm: LLM) -> None:
    mapping = {"params": {"max_tokens": 3, "temperature": 0}, "output_format": "parquet"}
    rows = json_lines([{"prompt": "Once", "kept": 1.5}])
    batch = ended(client, create(client, rows, endpoint="/v1/completions", extra_body={"mapping": mapping}))
    (row,) = pq.read_table(io.BytesIO(client.files.content(str(batch.output_file_id)).read())).to_pylist()
    assert (row["kept"], row["response"]) == (1.5, raw(llm, "Once", 3))


def test_a_mapping_that_fits_no_row_fails_the_batch(client: openai.OpenAI) -> None:
    for mapping, message in (
        ({"prompt_template": "{text}"}, "the template asks for 'text'; the row has 'id', 'prompt'"),
        ({"output": {"a": "{respons}"}}, "output 'a' asks for 'respons'; a result has 'id', 'prompt', 'row', "),
    ):  # fmt: skip
        rows = json_lines([{"id": 1, "prompt": "x"}, {"id": 2, "prompt": "y"}])
        batch = ended(client, create(client, rows, extra_body={"mapping": mapping}))
        assert batch.status == "failed"
        assert batch.errors is not None
        assert [(each.line, (each.message or "")[: len(message)]) for each in batch.errors.data or ()] == [
            (1, message),
            (2, message),
        ]


def test_a_mapping_that_is_wrong_is_refused(client: openai.OpenAI) -> None:
    for mapping, message in (
        ([], "mapping: expected an object"),
        ({"template": "x"}, "template: unknown parameter"),
        ({"prompt_template": "{a!r}"}, "mapping.prompt_template: only {field} is known"),
        ({"output": {"a": 1}}, "mapping.output.a: expected a template"),
        ({"params": {"max_token": 1}}, "mapping.params: unknown argument 'max_token'; did you mean 'max_tokens'?"),
        ({"params": {"temperature": -1}}, "temperature: expected a number of at least 0"),
        ({"output_format": "xml"}, "mapping.output_format: expected one of jsonl, csv, tsv, parquet, got 'xml'"),
    ):
        with pytest.raises(openai.BadRequestError) as error:
            create(client, b"", extra_body={"mapping": mapping})
        assert error.value.body["message"].startswith(message)  # type: ignore[index]


def test_text_that_has_no_utf_8_is_refused(server: Server) -> None:
    for content in (b'{"input_file_id": "\\ud800"}', b'{"metadata": {"a": "\\ud800"}}'):
        response = httpx.post(f"{server.url}/v1/batches", content=content)
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"].startswith("body: ")


def test_the_list_is_json_that_browsers_read_too(server: Server) -> None:
    page = httpx.get(f"{server.url}/v1/batches?limit=1").json()
    assert page["data"][0]["request_counts"].keys() == {"total", "completed", "failed"}
