"""Requests that name LoRA adapters as their model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from local_server import local_server
from model.checkpoints.test_adapter import save_adapter

from pybatch import LLM, AsyncLLM, SamplingParams

CHAT = [{"role": "user", "content": "Hello"}]


def adapter(folder: Path, seed: int) -> Path:
    random = torch.Generator().manual_seed(seed)
    roles = {"A": torch.randn(4, 96, generator=random), "B": torch.ones(64, 4)}
    return save_adapter(folder, {"model.layers.1.mlp.down_proj": roles})


def test_an_adapters_name_is_a_model(tiny_model: Path, tmp_path: Path) -> None:
    paths = {name: adapter(tmp_path / name, seed) for seed, name in enumerate(("first", "second"), 1)}
    llm = AsyncLLM(tiny_model, threads=1, num_kv_blocks=64, lora_modules=paths)
    with local_server(llm) as server:

        def post(path: str, model: str, **more: Any) -> httpx.Response:
            body = {"model": model, "temperature": 0, "max_tokens": 6, **more}
            return httpx.post(f"{server.url}{path}", json=body, timeout=60)

        listed = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert [(each["id"], each["parent"]) for each in listed] == [
            ("tiny", None),
            ("first", "tiny"),
            ("second", "tiny"),
        ]
        assert httpx.get(f"{server.url}/v1/models/second").json()["id"] == "second"
        texts = {}
        for name in ("tiny", "first", "second"):
            answer = post("/v1/completions", name, prompt="Once").json()
            assert answer["model"] == name
            texts[name] = answer["choices"][0]["text"]
        greedy = SamplingParams(temperature=0, max_tokens=6)
        for name, path in {"tiny": None, **paths}.items():
            merged = LLM(tiny_model, threads=1, num_kv_blocks=64, adapter=path)
            assert merged.generate("Once", greedy, use_tqdm=False)[0].outputs[0].text == texts[name]
        chats = [post("/v1/chat/completions", name, messages=CHAT).json() for name in texts]
        assert len({each["choices"][0]["message"]["content"] for each in chats}) == 3
        told = post("/v1/messages", "second", messages=CHAT).json()
        assert told["model"] == "second"
        assert told["content"][0]["text"] == chats[2]["choices"][0]["message"]["content"]
        lines = post("/v1/completions", "first", prompt="Once", stream=True).text.splitlines()
        parts = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert "".join(part["choices"][0]["text"] for part in parts) == texts["first"]
        unknown = post("/v1/completions", "third", prompt="Once")
        assert unknown.status_code == 404
        assert "model: expected 'tiny' or 'first' or 'second', got 'third'" in unknown.text
        path = post("/v1/completions", "tiny", prompt="Once", lora_request={"lora_path": "/"})
        assert path.status_code == 400
    llm.close()


def test_an_adapter_may_not_have_the_models_name(tiny_model: Path, tmp_path: Path) -> None:
    llm = AsyncLLM(tiny_model, threads=1, num_kv_blocks=64, lora_modules={"tiny": adapter(tmp_path / "a", 1)})
    with pytest.raises(ValueError, match="lora_modules: 'tiny' is the model's own name"), local_server(llm):
        pass
    llm.close()
