"""What a GGUF file's metadata says of rotation, ends and shape is what llama.cpp reads out of it, or is refused."""

from __future__ import annotations

import copy
import logging
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from model.families import CONFIGS, SMALL, make, reference_logits, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from transformers import LlamaConfig, PreTrainedModel

from pybatch.model import ModelError, load_model
from pybatch.model.checkpoints.gguf_ends import end_of_generation_ids

F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
Value = tuple[GGUFValueType | None, Any]
U32, FLOAT, STRING, BOOL = (GGUFValueType[name] for name in ("UINT32", "FLOAT32", "STRING", "BOOL"))
IDS = some_ids(60)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return make("llama2")


def write(path: Path, model: PreTrainedModel, extra: dict[str, Value], arch: str = "llama") -> Path:
    writer = begin(path / "model.gguf", arch, model)
    for key, (kind, value) in extra.items():
        if kind is None:
            writer.add_array(key, value)
        else:
            for entries in writer.kv_data:
                entries.pop(key, None)
            writer.add_key_value(key, value, kind)
    write_tensors(writer, arch, model, F32)
    finish(writer)
    return path / "model.gguf"


def scaled(model: PreTrainedModel, rope: dict[str, Any]) -> PreTrainedModel:
    config = copy.deepcopy(model.config)
    config.rope_parameters = {"rope_theta": 10000.0, **rope}
    other = type(model)(config).eval()
    other.load_state_dict(model.state_dict())
    return other


LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_KEYS: dict[str, Value] = {
    "rope.scaling.type": (STRING, "yarn"),
    "rope.scaling.factor": (FLOAT, 4.0),
    "rope.scaling.original_context_length": (U32, 64),
}


@pytest.mark.parametrize(
    ("keys", "rope"),
    [
        ({"rope.scaling.type": (STRING, "linear"), "rope.scaling.factor": (FLOAT, 4.0)}, LINEAR),
        ({"rope.scale_linear": (FLOAT, 4.0)}, LINEAR),
        ({"rope.scaling.factor": (FLOAT, 4.0)}, LINEAR),
        ({"rope.scaling.factor": (FLOAT, 4.0), "rope.scale_linear": (FLOAT, 9.0)}, LINEAR),
        ({"rope.scaling.type": (STRING, "none"), "rope.scaling.factor": (FLOAT, 4.0)}, {"rope_type": "default"}),
        ({"rope.scaling.type": (STRING, "linear"), "rope.scaling.factor": (FLOAT, 0.0)}, {"rope_type": "default"}),
        ({"rope.scaling.type": (STRING, "linear")}, {"rope_type": "default"}),
        (YARN_KEYS, YARN),
        ({**YARN_KEYS, "rope.scaling.attn_factor": (FLOAT, 0.5)}, {**YARN, "attention_factor": 0.5 * 1.138629436}),
        (
            {**YARN_KEYS, "rope.scaling.yarn_log_multiplier": (FLOAT, 0.5)},
            {**YARN, "mscale": 1.0, "mscale_all_dim": 0.5},
        ),
    ],
)  # fmt: skip
def test_scaling_of_rotation(
    model: PreTrainedModel, tmp_path: Path, keys: dict[str, Value], rope: dict[str, Any]
) -> None:
    path = write(tmp_path, model, {f"llama.{key}": value for key, value in keys.items()})
    actual = logits_of(load_model(path, skip_tokenizer=True).decoder, IDS)
    torch.testing.assert_close(actual, reference_logits(scaled(model, rope), IDS), rtol=3e-4, atol=3e-4)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("llama.rope.scaling.type", (STRING, "longrope"), "expected none, linear or yarn, got 'longrope'"),
        ("llama.rope.scaling.factor", (FLOAT, -1.0), "expected a number above 0"),
        ("llama.rope.scaling.yarn_ext_factor", (FLOAT, 0.5), "yarn_ext_factor = 0.5 changes what the model computes"),
        ("llama.rope.dimension_count", (U32, 8), "expected 16, the size of a head, got 8"),
        ("llama.rope.freq_base", (STRING, "high"), "expected a number above 1"),
        ("llama.attention.scale", (FLOAT, 0.1), r"attention\.scale = 0\.1\d* changes what"),
        ("llama.logit_scale", (FLOAT, 0.5), "logit_scale = 0.5 changes"),
        ("llama.embedding_scale", (FLOAT, 12.0), "embedding_scale = 12.0 changes"),
        ("llama.attention.clamp_kqv", (FLOAT, 8.0), "clamp_kqv = 8.0 changes"),
        ("llama.attention.causal", (BOOL, False), "causal = False changes"),
        ("llama.attention.value_length", (U32, 8), "expected attention.value_length to be that of keys, 16"),
        ("llama.attention.head_count", (U32, 0), "expected an integer from 1 to"),
        ("llama.block_count", (U32, 2**32 - 1), "expected an integer from 1 to 4096, got 4294967295"),
        ("llama.context_length", (U32, 2**32 - 1), "expected an integer from 1 to"),
        ("llama.embedding_length", (STRING, "64"), "expected an integer from 1 to"),
        ("general.alignment", (U32, 0), "expected a power of two, got 0"),
        ("general.alignment", (U32, 48), "expected a power of two, got 48"),
        ("general.alignment", (STRING, "32"), "expected a power of two, got '32'"),
        ("general.architecture", (STRING, "mamba"), "is of architecture mamba, which is not known here"),
        ("general.name", (U32, 3), "general.name: expected text, got 3"),
        ("split.count", (STRING, "2"), "split.count: expected an integer"),
        ("tokenizer.ggml.eos_token_id", (STRING, "2"), "eos_token_id: expected a token id"),
    ],
)
def test_metadata_that_is_refused_by_name(
    model: PreTrainedModel, tmp_path: Path, key: str, value: Value, message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(write(tmp_path, model, {key: value}), skip_tokenizer=True)


def test_special_ids_outside_the_vocabulary_are_dropped(
    model: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, model, {"tokenizer.ggml.eot_token_id": (U32, 4_000_000_000)})
    with caplog.at_level(logging.WARNING):
        assert load_model(path, skip_tokenizer=True).config.eos_token_ids == (2,)
    assert caplog.text.count("4000000000") == 1


def test_names_are_printed_as_text(model: PreTrainedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold red]x[/] \x1b[31m\nsecond line"
    path = write(tmp_path, model, {"general.name": (STRING, name)})
    loaded = load_model(path, skip_tokenizer=True, progress=True)
    shown = r"[bold red]x[/] \x1b[31m second line"
    assert loaded.config.name == shown
    assert f"Loading {shown}" in capsys.readouterr().err.replace("\n", " ")


def metadata(tokens: list[str], kinds: list[int] | None = None, **ids: int) -> dict[str, Any]:
    found: dict[str, Any] = {"tokens": tokens, "token_type": kinds or [3] * len(tokens)}
    return {f"tokenizer.ggml.{key}": value for key, value in {**found, **ids}.items()}


def test_ends_of_generation() -> None:
    """By llama.cpp's rule."""

    def ends(*tokens: str, kinds: list[int] | None = None, **ids: int) -> tuple[int, ...]:
        return end_of_generation_ids(metadata(list(tokens), kinds, **ids), "a file")

    assert ends("a", "<|endoftext|>", "<|im_start|>", "<|im_end|>", eos_token_id=3) == (3, 1)  # Qwen
    assert ends("<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", eos_token_id=2) == (2, 0, 1)  # Llama 3
    assert ends("<end_of_turn>", "x", eos_token_id=1, eot_token_id=0) == (1, 0)
    assert ends("<|end|>", "<|return|>", "<|call|>") == (1, 2)  # a message's end, in this format
    assert ends("<|end|>", "<|endoftext|>") == (0, 1)
    assert ends("<|im_end|>", "</s>", kinds=[1, 1], eos_token_id=1) == (1,)  # ordinary text
    assert ends("<|fim_pad|>", "<|file_sep|>", "x", kinds=[4, 4, 4]) == (0, 1)  # Qwen2.5-Coder
    assert ends("<｜end▁of▁sentence｜>", "[e~[") == (0, 1)  # noqa: RUF001  DeepSeek, MiniMax
    assert ends("a", "b", "c", eos_token_id=0, fim_rep_token_id=2) == (0, 2)
    assert end_of_generation_ids({}, "a file") == ()
    with pytest.raises(ModelError, match="eom_token_id"):
        end_of_generation_ids({"tokenizer.ggml.eom_token_id": 0.5}, "a file")


def test_smollm2_ends_with_a_message_or_a_text(smollm2_path: Path) -> None:
    tokens = load_model(smollm2_path).tokenizer
    assert tokens is not None
    ends = load_model(smollm2_path, skip_tokenizer=True).config.eos_token_ids
    assert [tokens.decode([i], skip_special_tokens=False) for i in ends][:2] == ["<|im_end|>", "<|endoftext|>"]


def header(*parts: bytes, version: int = 3, tensors: int = 0, entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries) + b"".join(parts)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def tensor(name: bytes, dimensions: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dimensions)}QIQ", len(dimensions), *dimensions, kind, offset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"GGUF", "expected a GGUF file|cut short"),
        (header(version=1), "version 1"),
        (header(version=0x03000000), "little-endian"),
        (header(tensors=2**63), "9,223,372,036,854,775,808 tensors where 0 bytes are left"),
        (header(entries=2**40), "metadata entries where 0 bytes"),
        (header(text(b"a", 2**62), bytes(20), entries=1), "bytes of text where"),
        (header(text(b"\xff\xfe"), struct.pack("<IB", 0, 1), bytes(20), entries=1), "damaged or cut short"),
        (header(text(b"a"), struct.pack("<I", 99), bytes(20), entries=1), "metadata of type 99"),
        (header(text(b"a"), struct.pack("<IIQ", 9, 9, 1), bytes(50), entries=1), "an array of type 9"),
        (header(text(b"a"), struct.pack("<IIQ", 9, 8, 2**20), bytes(50), entries=1), "1,048,576 texts where"),
        (header(text(b"a"), struct.pack("<IIQ", 9, 4, 2**50), bytes(50), entries=1), "an array of 1,125,899"),
        (header(*[text(b"a") + struct.pack("<IB", 0, 1)] * 2, entries=2), "the key 'a' twice"),
        (header(tensor(b"t", [4], 77), bytes(64), tensors=1), "type 77, which the gguf package does not know"),
        (header(tensor(b"t", [2] * 9), bytes(64), tensors=1), "with 9 dimensions"),
        (header(tensor(b"t", []), bytes(64), tensors=1), "with 0 dimensions"),
        (header(tensor(b"t", [5, 0]), bytes(64), tensors=1), r"of shape \[0, 5\]"),
        (header(tensor(b"t", [33], 2), bytes(64), tensors=1), "as Q4_0"),
        (header(tensor(b"t", [2**40, 2**40]), bytes(64), tensors=1), "the file is cut short"),
        (header(tensor(b"t", [4], 0, 2**60), bytes(64), tensors=1), "the file is cut short"),
        (header(tensor(b"t", [4], 0, 7), bytes(64), tensors=1), "at 7, which is no multiple of 32"),
        (header(*[tensor(b"t", [4])] * 2, bytes(64), tensors=2), "the tensor 't' twice"),
        (header(bytes(64)), "is of architecture null, which is not known"),
    ],
)
def test_headers_that_are_damaged_are_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_vectors_that_are_quantised_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "wide", LlamaConfig(**{**SMALL, "intermediate_size": 96}))
    model = make("wide")
    writer = begin(tmp_path / "model.gguf", "llama", model)
    add = writer.add_tensor

    def quantised(name: str, data: Any, raw_dtype: Any = None) -> None:

        kind = GGMLQuantizationType.Q8_0
        add(
            name,
            quants.quantize(data, kind) if data.ndim == 1 else data,
            raw_dtype=kind if data.ndim == 1 else raw_dtype,
        )

    monkeypatch.setattr(writer, "add_tensor", quantised)
    write_tensors(writer, "llama", model, F16)
    finish(writer)
    with pytest.raises(ModelError, match="is Q8_0 of 1 dimensions"):
        load_model(tmp_path / "model.gguf", skip_tokenizer=True)


def test_a_file_that_is_no_gguf_writer_output_is_named(tmp_path: Path) -> None:
    finish(GGUFWriter(tmp_path / "model.gguf", "llama"))
    with pytest.raises(ModelError, match=r"expected llama\.block_count, which is not there"):
        load_model(tmp_path / "model.gguf")
