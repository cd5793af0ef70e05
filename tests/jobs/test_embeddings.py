"""Jobs of rows for /v1/embeddings, in OpenAI's batch files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cli_command import FAST, Cli
from embedding_models import encoded, random, saved
from openai.types import CreateEmbeddingResponse
from transformers import Qwen3Config, Qwen3ForCausalLM

from pybatch import LLM, PoolingParams


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(random(Qwen3ForCausalLM, Qwen3Config), tmp_path_factory.mktemp("embedder"))


def line(custom_id: str, url: str = "/v1/embeddings", **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}}


ROWS = [
    line("one", input="a text"),
    line("several", input=["a text", "b", "c" * 300], dimensions=16, encoding_format="float"),
    line("generated", url="/v1/completions", prompt="a text", max_tokens=3),
    line("twice", input="a text"),
    line("too-long", input="x" * 2000),
    line("too-wide", input="x", dimensions=65),
]


def test_rows_are_embedded_as_llm_does_and_found_again(cli: Cli, model: Path, tmp_path: Path) -> None:
    rows, out, again, cache = (tmp_path / name for name in ("in.jsonl", "out.jsonl", "again.jsonl", "cache"))
    rows.write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    flags = ("--model", model, "--cache", cache, *FAST)
    ran = cli("run", rows, "-o", out, *flags)
    assert ran.code == 1
    results = {each["custom_id"]: each["response"]["body"] for each in map(json.loads, out.read_text().splitlines())}
    assert list(results) == ["one", "several", "generated", "twice"]
    llm = LLM(model, threads=1, num_kv_blocks=128)
    one = CreateEmbeddingResponse.model_validate(results["one"])
    assert [each.embedding for each in one.data] == [llm.embed("a text")[0].outputs.embedding]
    assert one.usage.prompt_tokens == len(encoded("a text"))
    assert results["twice"] == results["one"]
    expected = llm.embed(ROWS[1]["body"]["input"], pooling_params=PoolingParams(dimensions=16))
    assert [each["embedding"] for each in results["several"]["data"]] == [each.outputs.embedding for each in expected]
    assert results["generated"]["usage"]["completion_tokens"] == 3
    failed = [json.loads(each) for each in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [each["custom_id"] for each in failed] == ["too-long", "too-wide"]
    assert "dimensions: expected at most 64" in str(failed[1])
    cli("run", rows, "-o", again, *flags)
    found = {each["custom_id"]: each["response"]["body"] for each in map(json.loads, again.read_text().splitlines())}
    assert {name: found[name] for name in ("one", "several", "twice")} == {
        name: results[name] for name in ("one", "several", "twice")
    }


def test_what_embeddings_will_take_can_be_told_before(cli: Cli, model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "in.jsonl"
    rows.write_text("".join(json.dumps(line(str(i), input=f"text {i}")) + "\n" for i in range(20)))
    ran = cli("run", rows, "--dry-run", "--model", model, *FAST)
    assert ran.code == 0, ran.err
    assert "20" in ran.out + ran.err
