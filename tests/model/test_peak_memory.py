"""At the peak of loading, memory holds the packed weights and little else, whatever the checkpoint's size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType
from random_model import Shape, write_directory, write_gguf

from pybatch.model import load_model

SHAPE = Shape(
    hidden_size=512,
    intermediate_size=8192,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=32768,
    tie_word_embeddings=True,
)
EXTRA = 24 << 20  # bytes


def resident(field: str) -> int:
    return int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)[1]) << 10  # type: ignore[index]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 87 MB in bfloat16."""
    path = tmp_path_factory.mktemp("large")
    write_directory(path / "bf16", SHAPE, seed=0)
    write_gguf(path / "q8_0.gguf", SHAPE, 0, GGMLQuantizationType.Q8_0)
    return path


@pytest.mark.parametrize(
    ("file", "quantization"),
    [
        ("bf16", None),
        ("bf16", "int8"),
        ("bf16", "int8-weight-only"),
        ("q8_0.gguf", "gguf"),
        ("q8_0.gguf", "int8"),
        ("q8_0.gguf", None),
    ],
)
def test_the_peak_is_that_of_the_packed_weights(model: Path, file: str, quantization: str | None) -> None:
    load_model(model / file, quantization=quantization, skip_tokenizer=True, max_model_len=256)  # imports, thread pools
    try:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    except OSError as error:
        pytest.skip(f"the peak cannot be reset here: {error}")
    before = resident("VmRSS")
    decoder = load_model(model / file, quantization=quantization, skip_tokenizer=True, max_model_len=256).decoder
    peak = resident("VmHWM") - before
    assert peak < decoder.weight_bytes() + EXTRA
    assert peak > decoder.weight_bytes() / 2  # it is of this model
