"""Message batches with the `anthropic` client."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from batch_files import until
from live_server import Server

from pybatch import LLM, SamplingParams


@pytest.fixture(scope="module")
def client(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


def asked(number: int, **params: Any) -> Any:
    messages = [{"role": "user", "content": f"Say {number}"}]
    params = {"model": "tiny", "max_tokens": 6, "temperature": 0, "messages": messages, **params}
    return {"custom_id": f"row-{number}", "params": params}


def ended(client: anthropic.Anthropic, batch: MessageBatch) -> MessageBatch:
    return until(lambda: client.messages.batches.retrieve(batch.id), lambda now: now.processing_status == "ended")


def test_every_request_has_its_result(client: anthropic.Anthropic, tiny_model: Any) -> None:
    requests = [asked(number) for number in range(30)]
    requests[3] = asked(3, temperature=7)
    requests[5] = asked(5, model="other")
    batch = client.messages.batches.create(requests=requests)
    assert (batch.type, batch.processing_status, batch.results_url) == ("message_batch", "in_progress", None)
    assert (batch.expires_at - batch.created_at).total_seconds() == 86_400
    batch = ended(client, batch)
    counts = batch.request_counts
    assert (counts.succeeded, counts.errored, counts.processing, counts.canceled, counts.expired) == (28, 2, 0, 0, 0)
    assert batch.ended_at is not None
    results = {each.custom_id: each.result for each in client.messages.batches.results(batch.id)}
    assert len(results) == 30
    llm = LLM(tiny_model, threads=1, num_kv_blocks=64)
    (expected,) = llm.chat(requests[4]["params"]["messages"], SamplingParams(temperature=0, max_tokens=6), False)
    message = results["row-4"].message  # type: ignore[union-attr]
    assert message.content[0].text == expected.outputs[0].text  # type: ignore[union-attr]
    assert message.usage.output_tokens == 6
    for bad, text in ((3, "line 4: temperature: expected a number from 0 to 1, got 7"), (5, "line 6: model: expected")):
        result = results[f"row-{bad}"]
        assert result.type == "errored"
        assert result.error.error.message.startswith(text)


def test_results_are_as_the_client_s_types_have_them(client: anthropic.Anthropic, server: Server) -> None:
    batch = ended(client, client.messages.batches.create(requests=[asked(1), asked(2, max_tokens=0)]))
    assert batch.results_url == f"{server.url}/v1/messages/batches/{batch.id}/results"
    for line in httpx.get(batch.results_url).text.splitlines():
        MessageBatchIndividualResponse.model_validate_json(line, strict=True)


def test_a_batch_is_canceled_and_deleted(client: anthropic.Anthropic) -> None:
    requests = [asked(number, max_tokens=400 if number > 9 else 2) for number in range(80)]
    batch = client.messages.batches.create(requests=requests)
    with pytest.raises(anthropic.BadRequestError, match="in progress; cancel it before"):
        client.messages.batches.delete(batch.id)
    with pytest.raises(anthropic.AnthropicError, match="Has it finished processing"):
        client.messages.batches.results(batch.id)
    canceling = client.messages.batches.cancel(batch.id)
    assert canceling.processing_status == "canceling"
    assert canceling.cancel_initiated_at is not None
    batch = ended(client, batch)
    results = list(client.messages.batches.results(batch.id))
    canceled = [each for each in results if each.result.type == "canceled"]
    assert len(results) == 80
    assert canceled
    assert batch.request_counts.canceled == len(canceled)
    assert batch.request_counts.succeeded == 80 - len(canceled)
    assert client.messages.batches.delete(batch.id).type == "message_batch_deleted"
    for gone in (client.messages.batches.retrieve, client.messages.batches.delete, client.messages.batches.cancel):
        with pytest.raises(anthropic.NotFoundError, match=batch.id):
            gone(batch.id)


def test_lists_come_in_pages_in_both_directions(client: anthropic.Anthropic) -> None:
    ids = [client.messages.batches.create(requests=[asked(1)]).id for _ in range(5)][::-1]
    assert [batch.id for batch in client.messages.batches.list(limit=2)][:5] == ids
    page = client.messages.batches.list(limit=2, after_id=ids[1])
    assert ([batch.id for batch in page.data], page.first_id, page.last_id) == (ids[2:4], ids[2], ids[3])
    page = client.messages.batches.list(limit=2, before_id=ids[3])
    assert ([batch.id for batch in page.data], page.has_more) == (ids[1:3], True)
    assert [batch.id for batch in page.get_next_page().data] == ids[:1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "requests: missing"),
        ({"requests": []}, "requests: expected 1 to 50,000, got 0"),
        ({"requests": [1]}, "requests[0]: expected an object"),
        ({"requests": [{"custom_id": "a"}]}, "requests[0].params: expected an object, got None"),
        ({"requests": [{"custom_id": "", "params": {}}]}, "requests[0].custom_id: expected 1 to 64 characters, got 0"),
        ({"requests": [asked(1), asked(1)]}, "requests[1].custom_id: 'row-1' was used before"),
    ],
)
def test_what_cannot_be_a_batch_is_refused(server: Server, body: Any, message: str) -> None:
    response = httpx.post(f"{server.url}/v1/messages/batches", json=body)
    assert response.status_code == 400
    error = response.json()
    assert error["error"]["type"] == "invalid_request_error"
    assert error["error"]["message"].startswith(message)
