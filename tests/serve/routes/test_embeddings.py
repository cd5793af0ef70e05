"""/v1/embeddings, /score and /rerank over HTTP, and OpenAI's client on the first."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import httpx
import numpy as np
import openai
import pytest
from batch_files import create, ended, json_lines, lines_of
from embedding_models import encoded, random, saved
from local_server import LocalServer, local_server
from transformers import Qwen3Config, Qwen3ForCausalLM

from pybatch import LLM, PoolingParams
from pybatch.api.async_llm import AsyncLLM


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    directory = saved(random(Qwen3ForCausalLM, Qwen3Config), tmp_path_factory.mktemp("reranker"))
    return LLM(directory, threads=1, num_kv_blocks=128)


@pytest.fixture(scope="module")
def server(llm: LLM) -> Iterator[LocalServer]:
    served = AsyncLLM(vars(llm.engine.config)["model"], threads=1, num_kv_blocks=128)
    with local_server(served) as server:
        yield server
    served.close()


def test_openais_client_gets_the_embeddings_that_llm_gives(llm: LLM, server: LocalServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    texts = ["a text", "another, longer text"]
    expected = [output.outputs.embedding for output in llm.embed(texts)]
    got = client.embeddings.create(model="tiny", input=texts)  # in base64, which the client decodes
    assert [each.embedding for each in got.data] == expected
    assert [each.index for each in got.data] == [0, 1]
    assert got.usage.prompt_tokens == got.usage.total_tokens == sum(len(encoded(text)) for text in texts)
    (short,) = llm.embed(texts[0], pooling_params=PoolingParams(dimensions=8))
    got = client.embeddings.create(model="tiny", input=encoded(texts[0]), dimensions=8, encoding_format="float")
    assert got.data[0].embedding == short.outputs.embedding
    raw = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "x", "encoding_format": "base64"})
    vector = np.frombuffer(base64.b64decode(raw.json()["data"][0]["embedding"]), "<f4")
    assert vector.tolist() == llm.embed("x")[0].outputs.embedding


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_scores_are_those_that_llm_gives(llm: LLM, server: LocalServer, path: str) -> None:
    expected = llm.score("q", ["d", "e"])
    for names in (("text_1", "text_2"), ("queries", "documents")):
        body = {"model": "tiny", **dict(zip(names, ("q", ["d", "e"]), strict=True))}
        got = httpx.post(server.url + path, json=body).json()
        assert [each["score"] for each in got["data"]] == [each.outputs.score for each in expected]
        assert got["usage"]["prompt_tokens"] == sum(len(each.prompt_token_ids) for each in expected)


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_are_ranked_best_first(llm: LLM, server: LocalServer, path: str) -> None:
    documents = ["one", "two", "three", "four"]
    scores = [each.outputs.score for each in llm.score("q", documents)]
    order = sorted(range(4), key=lambda i: -scores[i])
    got = httpx.post(server.url + path, json={"model": "tiny", "query": "q", "documents": documents, "top_n": 3}).json()
    assert [each["index"] for each in got["results"]] == order[:3]
    assert [each["relevance_score"] for each in got["results"]] == [scores[i] for i in order[:3]]
    assert [each["document"]["text"] for each in got["results"]] == [documents[i] for i in order[:3]]
    body = {"model": "tiny", "query": "q", "documents": documents, "return_documents": False}
    got = httpx.post(server.url + path, json=body).json()
    assert [each["index"] for each in got["results"]] == order
    assert "document" not in got["results"][0]


@pytest.mark.parametrize("url", ["/v1/score", "/v2/rerank"])
def test_a_batch_of_scores_has_the_responses_that_requests_have(llm: LLM, server: LocalServer, url: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    asked = {"queries": "q"} if url == "/v1/score" else {"query": "q"}
    body = {"model": "tiny", **asked, "documents": ["one", "two", "three"]}
    row = {"custom_id": "a", "method": "POST", "url": url, "body": body}
    other = {**row, "custom_id": "b", "body": {**body, "documents": 3}}
    batch = ended(client, create(client, json_lines([row, other]), endpoint=url))
    (line,) = lines_of(client, batch.output_file_id)
    alone = httpx.post(server.url + url, json=body).json()
    differ = ("id", "created")
    answer = line["response"]["body"]
    assert {name: answer[name] for name in alone if name not in differ} == {
        name: alone[name] for name in alone if name not in differ
    }
    assert batch.usage is not None
    assert batch.usage.input_tokens == answer["usage"]["prompt_tokens"]
    (error,) = lines_of(client, batch.error_file_id)
    assert error["response"]["body"]["error"]["param"] == "documents"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/embeddings", {}, "input"),
        ("/v1/embeddings", {"input": []}, "input"),
        ("/v1/embeddings", {"input": ["a", 3]}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 0}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "dimensions": 65}, "dimensions"),
        ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("/v1/embeddings", {"input": "a", "temperature": 1}, "temperature"),
        ("/v1/embeddings", {"input": "a" * 2000}, "input"),
        ("/v1/embeddings", {"input": ["b", "a" * 2000]}, "input[1]"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "text_1"),
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
    ],
)
def test_what_is_wrong_is_named(server: LocalServer, path: str, body: dict[str, object], param: str) -> None:
    refused = httpx.post(server.url + path, json={"model": "tiny", **body})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == param
