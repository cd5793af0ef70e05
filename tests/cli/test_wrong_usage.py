"""What chat, bench and prompts are given that cannot be: one line, before any model is looked for."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from cli_command import Cli

NONE = ["--model", "no-such-model"]
TRY = ["prompts", "try", "ask.prompt", *NONE]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["chat", *NONE, "--max-tokens", "0"], "max_tokens: expected"),
        (["chat", *NONE, "--model", ""], "'--model': expected a value, got an empty one"),
        (["bench", "step", "", *NONE], "'MODEL': expected a value, got an empty one"),
        (["bench", "step", "one", *NONE], "expected MODEL or --model, not both, got one and no-such-model"),
        (
            ["bench", "step", *NONE, "--sequences", "1,9999999999"],
            "sequences: expected numbers from 1 to 4096 with commas",
        ),
        (["bench", "step", *NONE, "--sequences", "100"], "sequences: expected 1 to 64, got 100"),
        (["bench", "step", *NONE, "--block-size", "7"], "block_size: expected one of 8, 16, 32, 64; got 7"),
        (["bench", "sweep", "one", *NONE], "expected MODEL or --model, not both"),
        (["bench", "sweep", *NONE, "--batch-sizes", "0"], "batch_sizes: expected numbers from 1 to 4096"),
        (["bench", "sweep", *NONE, "--json", "a", "--html", "./a"], "--json, --html, --png: expected a file for each"),
        (["bench", "sweep", *NONE, "--gguf", "a.gguf"], "--gguf: is the model of --precision gguf"),
        (["bench", "sweep", *NONE, "--kv-type", "auto", "--kv-type", "int3"], "kv_cache_dtype: expected one of"),
        (["bench", "sweep", *NONE, "--prompts", "binary"], "binary, line 1: "),
        (["bench", "sweep", *NONE, "--prompts", "deep"], "deep, line 1: "),
        (["prompts", "list", "--folder", "none"], "--folder: expected a folder of prompts, got none"),
        (["prompts", "check", "ask.prompt", "--data", "none.jsonl"], "none.jsonl: No such file or directory"),
        ([*TRY, "--json", "none/told.json"], "none/told.json: No such file or directory"),
        ([*TRY, "--row", "1"], "--row: is a number in --data, which is not given"),
        ([*TRY, "--data", "rows.jsonl", "--row", "9" * 30], "--row: rows.jsonl has no row 9999"),
        (["plan", "~nobody-knows/x", "--input-tokens", "1", "--output-tokens", "1", "--rows", "1"], "~nobody-knows/x"),
    ],
)
def test_wrong_usage_is_told_in_a_line_before_a_model_is_looked_for(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    Path("ask.prompt").write_text("Hello")
    Path("rows.jsonl").write_text('{"a": 1}\n')
    Path("binary").write_bytes(b"\xff\xfe\x00\n")
    Path("deep").write_text("[" * 100_000)
    ran = cli(*arguments)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    assert says in ran.err


def test_chat_needs_a_message_before_a_model(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(" \n"))
    ran = cli("chat", *NONE)
    assert (ran.code, ran.err) == (2, "pybatch: standard input: expected a message, got none\n")


@pytest.mark.parametrize(
    ("flag", "value", "says"),
    [
        ("--tokenizer", "/none", "tokenizer: expected a directory, a GGUF file, "),
        ("--tokenizer", ".", "tokenizer: .: expected a directory with config.json"),
        ("--lora-modules", "a=/none", "lora_modules: a: adapter: expected a directory with adapter_config.json"),
        (
            "--speculative-config",
            '{"method": "draft_model", "model": "/none", "num_speculative_tokens": 2}',
            "speculative_config: model: expected a directory, a GGUF file, ",
        ),
    ],
)
def test_what_a_second_model_is_for_is_told(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello"))
    ran = cli("chat", "--model", tiny_model, "--num-kv-blocks", "64", flag, value)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1), ran.err
    assert says in ran.err


def test_a_precision_that_a_model_has_not_is_told_before_others_are_measured(cli: Cli, tiny_model: Path) -> None:
    ran = cli("bench", "sweep", tiny_model, "--precision", "float32", "--precision", "gguf")
    assert (ran.code, ran.out) == (2, "")
    assert f"precision: 'gguf' runs a GGUF file, and {tiny_model} is a directory; expected --gguf FILE" in ran.err
