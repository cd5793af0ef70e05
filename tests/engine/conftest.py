"""A small random model with a byte-level tokenizer, and engines on it that are checked for lost blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine.runs import EOS, MakeEngine, make_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from pybatch.engine import Engine, EngineConfig
from pybatch.model import Decoder, Tokenizer, load_model


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


@pytest.fixture(scope="session")
def reference(tokenizer: Tokenizer) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # large enough that logits are far apart
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_path(reference: LlamaForCausalLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    reference.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def decoder(model_path: Path) -> Decoder:
    return load_model(model_path, skip_tokenizer=True, progress=False).decoder


@pytest.fixture(scope="session")
def int8_decoder(model_path: Path) -> Decoder:
    return load_model(model_path, skip_tokenizer=True, progress=False, quantization="int8").decoder


@pytest.fixture
def make_engine(decoder: Decoder, tokenizer: Tokenizer) -> Iterator[MakeEngine]:
    """Makes engines; when the test is over none may have lost a block."""
    engines: list[Engine] = []

    def make(model: Decoder = decoder, *, with_tokenizer: bool = True, **config: Any) -> Engine:
        config = {"num_kv_blocks": 512, **config}
        engines.append(Engine(model, tokenizer if with_tokenizer else None, EngineConfig(**config)))
        return engines[-1]

    yield make
    for engine in engines:
        engine.check_integrity()
        assert not engine.has_unfinished()
