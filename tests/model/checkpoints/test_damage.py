"""Bytes changed at random in a model's files: it loads, or ModelError says in one line why not."""

from __future__ import annotations

import json
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType
from model.families import make, save
from model.gguf_writing import begin, finish, write_tensors

from pybatch.model import ModelError, load_model

SECONDS = 4.0  # for each kind of file
NUMBERS = [0, 1, -1, 2, 7, 255, 2**16, 2**31, 2**32 - 1, 2**63, 10**12, 10**30, -(10**9), 0.5, 1e300, -1e-300]
VALUES = [*NUMBERS, None, True, False, "", "x", "2", [], [1], ["x"], {}, {"a": 1}, [[]], float("nan"), float("inf")]
NAMES = ["rope_scaling", "rope_parameters", "head_dim", "sliding_window", "layer_types", "quantization_config"]


def expect_model_errors(change: Callable[[random.Random], None], load: Callable[[], Any], seed: int) -> None:
    """Changes and loads until the time is up, by one seed after another."""
    deadline, refused, loaded = time.perf_counter() + SECONDS, 0, 0
    while time.perf_counter() < deadline or refused < 20:
        number, message = seed + refused + loaded, ""
        change(random.Random(number))
        try:
            load()
        except ModelError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"seed {number}: {type(error).__name__}: {error}") from error
        assert "\n" not in message, number
        assert len(message) < 2000, number
        refused, loaded = refused + bool(message), loaded + (not message)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_config_json(tmp_path: Path) -> None:
    directory = save(make("qwen2-windows"), tmp_path)
    original = json.loads((directory / "config.json").read_text())

    def places(value: Any) -> list[tuple[Any, Any]]:
        """Every container with every key in it."""
        keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
        return [place for key in keys for place in [(value, key), *places(value[key])]]

    def change(choose: random.Random) -> None:
        config = json.loads(json.dumps(original))
        for _ in range(choose.choice([1, 1, 1, 2, 3])):
            container, key = choose.choice(places(config))
            match choose.randrange(4):
                case 0 if isinstance(container, dict):
                    container.pop(key, None)
                case 1:
                    config[choose.choice(NAMES)] = choose.choice(VALUES)
                case 2 if isinstance(container[key], int | float):
                    container[key] = container[key] * choose.choice([0, -1, 2, 3, 0.5, 1e9])
                case _:
                    container[key] = choose.choice(VALUES)
        (directory / "config.json").write_text(json.dumps(config))

    expect_model_errors(change, lambda: load_model(directory, skip_tokenizer=True), seed=0)


def mutated(content: bytes, header: int, choose: random.Random) -> bytes:
    """A few bytes or numbers of the header changed, or a piece of the file cut out, doubled or dropped."""
    data = bytearray(content)
    for _ in range(choose.choice([1, 1, 2, 4])):
        at = choose.randrange(min(header, len(data)) or 1)
        match choose.randrange(6):
            case 0:
                data[at : at + 1] = bytes([choose.randrange(256)])
            case 1:
                data[at : at + 8] = struct.pack("<Q", choose.choice(NUMBERS[:9]) % 2**64)
            case 2:
                data[at : at + 4] = struct.pack("<I", choose.choice(NUMBERS[:9]) % 2**32)
            case 3:
                del data[at : at + choose.choice([1, 2, 4, 8, 100])]
            case 4:
                data[at:at] = data[at : at + choose.choice([1, 4, 8, 30])]
            case _:
                del data[choose.randrange(len(data)) :]
                break
    return bytes(data)


def test_safetensors(tmp_path: Path) -> None:
    path = save(make("llama2"), tmp_path) / "model.safetensors"
    content = path.read_bytes()
    header = 8 + struct.unpack("<Q", content[:8])[0]
    expect_model_errors(
        lambda choose: path.write_bytes(mutated(content, header, choose)) and None,
        lambda: load_model(tmp_path, skip_tokenizer=True),
        seed=1_000_000,
    )


@pytest.mark.parametrize("with_tokenizer", [False, True])
def test_gguf(tmp_path: Path, with_tokenizer: bool) -> None:
    model, path = make("llama2"), tmp_path / "model.gguf"
    writer = begin(path, "llama", model)
    letters = [chr(ord("a") + i % 26) * (1 + i // 26) for i in range(model.config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(letters)
    writer.add_token_types([1] * len(letters))
    writer.add_token_merges(["a a"])
    write_tensors(writer, "llama", model, GGMLQuantizationType.F16)
    finish(writer)
    content = path.read_bytes()
    expect_model_errors(
        lambda choose: path.write_bytes(mutated(content, content.index(b"output_norm") + 60, choose)) and None,
        lambda: load_model(path, skip_tokenizer=not with_tokenizer),
        seed=2_000_000,
    )
