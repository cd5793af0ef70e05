"""A file of prefixes that are in the KV cache from the start."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from cli_command import FAST, Cli

from pybatch import LLM, AsyncLLM, SamplingParams
from pybatch.serve.settings import ServerSettings
from pybatch.serve.store.storage import open_storage

SYSTEM = {"role": "system", "content": "You answer in rhymes, whatever is asked, and never without one."}
QUESTION = [SYSTEM, {"role": "user", "content": "Why?"}]
TEXT = "Once upon a time there was a librarian who "
GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "prefixes.jsonl"
    lines = ({"messages": [SYSTEM]}, {"prompt": TEXT}, {"prompt_token_ids": list(range(5, 30))})
    path.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_they_are_found_by_the_first_request(tiny_model: Path, file: Path) -> None:
    llm = LLM(tiny_model, num_kv_blocks=64, threads=1, pinned_prefixes=file)
    pinned = llm.engine.num_kv_blocks_pinned
    assert pinned > 6
    outputs = [*llm.chat(QUESTION, GREEDY, use_tqdm=False), *llm.generate([f"{TEXT}sang", [*range(5, 31)]], GREEDY)]
    alone = LLM(tiny_model, num_kv_blocks=64, threads=1)
    expected = [*alone.chat(QUESTION, GREEDY), *alone.generate([f"{TEXT}sang", [*range(5, 31)]], GREEDY)]
    assert [output.outputs for output in outputs] == [output.outputs for output in expected]
    assert [output.num_cached_tokens for output in outputs[1:]] == [len(TEXT), 25]
    assert outputs[0].num_cached_tokens >= len(SYSTEM["content"])
    assert llm.reset_prefix_cache()
    assert llm.engine.num_kv_blocks_pinned == pinned


def test_the_command_and_asyncio_take_the_file(tiny_model: Path, file: Path, tmp_path: Path, cli: Cli) -> None:
    llm = AsyncLLM(tiny_model, num_kv_blocks=64, threads=1, pinned_prefixes=str(file))

    async def first() -> Any:
        async for output in llm.generate(f"{TEXT}sang", GREEDY):
            last = output
        return last

    assert asyncio.run(first()).num_cached_tokens == len(TEXT)
    llm.close()
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}\n')
    given = (
        "run",
        tmp_path / "rows.jsonl",
        "--model",
        tiny_model,
        "-o",
        tmp_path / "out.jsonl",
        *FAST,
        "--pinned-prefixes",
    )
    assert cli(*given, file).code == 0
    ran = cli(*given, tmp_path / "none.jsonl", "--fresh")
    assert ran.code == 2
    assert "none.jsonl" in ran.err


def test_a_folder_of_prefixes_that_cannot_be_is_told_before_the_model_loads(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^prefix_cache_dir: expected a folder to write to, got .*: Not a directory"):
        LLM("no-such-model", prefix_cache_dir=tmp_path / "file" / "below")


def test_paths_may_begin_with_the_users_folder(
    tiny_model: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which a shell does not put in place in --prefix-cache-dir=~/prefixes."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    LLM(tiny_model, num_kv_blocks=64, prefix_cache_dir="~/prefixes", pinned_prefixes=f"~/{file.name}")
    assert list((tmp_path / "prefixes").iterdir())
    with open_storage(ServerSettings(data_dir="~/server")) as storage:
        assert storage.folder == tmp_path / "server"
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "expected a JSON object"),
        (
            '{"text": "a"}',
            "expected an object with 'messages', a 'prompt' or 'prompt_token_ids', got {\"text\": \"a\"}",
        ),
        ('{"messages": []}', "expected an object with"),
        ('{"prompt": ""}', "expected an object with"),
        ('{"messages": [{"role": "tool", "content": "a"}]}', "no tools here"),
        (json.dumps({"prompt": "a" * 200}), "prompt: 200 tokens .* do not fit"),
        (json.dumps({"prompt": "a" * 120}), "120 tokens .* of which 112 tokens are free beside pinned"),
    ],
)
def test_what_cannot_be_pinned_is_told_with_its_place(tiny_model: Path, tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "prefixes.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=rf"^pinned_prefixes: .*prefixes\.jsonl, line 2: .*{says}"):
        LLM(tiny_model, num_kv_blocks=8, threads=1, pinned_prefixes=path)
