"""A model from the weights cache is the model that was loaded, in memory that processes share; a file that is not as it
was written is found out and made again."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from model.families import make, save, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of

import pybatch
from pybatch.machine.huge_pages import HUGE_PAGE
from pybatch.model import Decoder, load_model
from pybatch.model.weights_cache import weights_of

IDS = some_ids(40)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(make("qwen2"), tmp_path / "model")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "new" / "cache"


def load(model: Path, folder: Path | None, quantization: str | None = "int8", **more: str) -> Decoder:
    return load_model(model, quantization=quantization, skip_tokenizer=True, weights_cache_dir=folder, **more).decoder  # type: ignore[arg-type]


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def maps(file: Path) -> Iterator[tuple[int, int, str]]:
    """Where a file is mapped in this process, and how."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            begin, end, flags = re.match(r"(\w+)-(\w+) (\S+)", line).groups()  # type: ignore[union-attr]
            yield int(begin, 16), int(end, 16), flags


def assert_mapped(decoder: Decoder, file: Path) -> None:
    places = list(maps(file))
    assert {flags for *_, flags in places} == {"r--s"}  # read-only, and shared
    for tensor in weights_of(decoder):
        assert any(begin <= tensor.data_ptr() and tensor.data_ptr() + tensor.nbytes <= end for begin, end, _ in places)
        assert tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize("family", ["qwen2", "smollm2", "llama2"])  # biases, tied embeddings, untied ones
@pytest.mark.parametrize("quantization", [None, "int8", "int8-weight-only"])
def test_every_start_has_the_same_bits_and_maps_them(
    tmp_path: Path, folder: Path, family: str, quantization: str | None
) -> None:
    model = save(make(family), tmp_path / family)
    expected = load(model, None, quantization)
    for _ in range(2):
        decoder = load(model, folder, quantization)
        (file,) = files(folder)
        assert_mapped(decoder, file)
        assert torch.equal(logits_of(decoder, IDS), logits_of(expected, IDS))
        assert decoder.weight_bytes() == expected.weight_bytes()
        assert (decoder.head.linear is decoder.embedding) == (expected.head.linear is expected.embedding)


def test_parts_of_several_gguf_types_come_back(tmp_path: Path, folder: Path) -> None:
    path, model = tmp_path / "model.gguf", make("llama2")
    writer = begin(path, "llama", model)
    kinds = GGMLQuantizationType
    of_type = {"v_proj": kinds.Q8_0, "down_proj": kinds.F16}  # whose rows are no whole blocks
    write_tensors(writer, "llama", model, lambda name: of_type.get(name.split(".")[-2], kinds.Q4_0))
    finish(writer)
    expected = load(path, None, "gguf")
    for _ in range(2):
        decoder = load(path, folder, "gguf")
        assert [type(layer.mixer.qkv.linear) for layer in decoder.layers] == [
            type(layer.mixer.qkv.linear) for layer in expected.layers
        ]
        assert torch.equal(logits_of(decoder, IDS), logits_of(expected, IDS))
    assert_mapped(decoder, files(folder)[0])


def test_a_changed_checkpoint_takes_the_place_of_the_old_one_and_each_precision_has_its_own(
    directory: Path, folder: Path
) -> None:
    load(directory, folder)
    load(directory, folder, None)
    load(directory, folder, None, dtype="bfloat16")
    before = files(folder)
    assert len(before) == 3
    save(make("qwen2").to(torch.float16), directory)
    changed = load(directory, folder)
    assert torch.equal(logits_of(changed, IDS), logits_of(load(directory, None), IDS))
    assert len(set(files(folder)) & set(before)) == 2
    assert len(files(folder)) == 3


def test_what_weights_are_packed_by_counts_too(directory: Path, folder: Path) -> None:
    """int8 weights are scaled by running the model, and so by its config."""
    load(directory, folder)
    (before,) = files(folder)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.3}))
    load(directory, folder)
    assert before not in files(folder)


@pytest.mark.parametrize("fault", ["flipped", "zeros", "cut", "empty", "longer", "foreign", "exchanged"])
def test_a_bad_file_is_told_and_made_again(
    directory: Path, folder: Path, caplog: pytest.LogCaptureFixture, fault: str
) -> None:
    expected = logits_of(load(directory, folder), IDS)
    (file,) = files(folder)
    good = file.read_bytes()
    end = len(good)
    bad = {
        "flipped": good[:-5000] + bytes([good[-5000] ^ 4]) + good[-4999:],
        "zeros": good[: HUGE_PAGE + 4096] + bytes(4096) + good[HUGE_PAGE + 8192 :],
        "cut": good[:-1],
        "empty": b"",
        "longer": good + b"x",
        "foreign": os.urandom(end),
        "exchanged": good.replace(b"qwen2", b"qwen3")[:HUGE_PAGE] + good[HUGE_PAGE + 64 :] + bytes(64),
    }[fault]
    replaced = folder / "other"
    replaced.write_bytes(bad)
    replaced.rename(file)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(logits_of(load(directory, folder), IDS), expected)
        assert torch.equal(logits_of(load(directory, folder), IDS), expected)
    assert len(caplog.records) == 1
    assert re.match(rf"weights_cache_dir: {file} is not used, and made again: ", caplog.records[0].getMessage())
    assert file.read_bytes() == good


def test_a_folder_that_cannot_be_written_is_told_and_the_model_loaded(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        decoder = load(directory, tmp_path / "file" / "below")
    assert torch.equal(logits_of(decoder, IDS), logits_of(load(directory, None), IDS))
    assert [record.getMessage()[:42] for record in caplog.records][-1] == "weights_cache_dir: weights are not kept: ["


def test_a_full_disk_is_told_and_leaves_nothing(
    directory: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HUGE_PAGE + 4096, limits[1]))
    try:
        with caplog.at_level(logging.WARNING):
            decoder = load(directory, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(logits_of(decoder, IDS), logits_of(load(directory, None), IDS))
    assert [record.getMessage() for record in caplog.records] == [
        "weights_cache_dir: weights are not kept: [Errno 27] File too large"
    ]
    assert files(folder) == []


def test_a_model_in_use_outlives_its_file(directory: Path, folder: Path) -> None:
    decoder = load(directory, folder)
    expected = logits_of(decoder, IDS)
    (file,) = files(folder)
    file.unlink()
    load(directory, folder)  # written anew
    assert torch.equal(logits_of(decoder, IDS), expected)


def test_engines_take_the_folder(tiny_model: Path, folder: Path) -> None:
    params = pybatch.SamplingParams(max_tokens=5, ignore_eos=True)
    answers = [
        pybatch.LLM(tiny_model, quantization="int8", num_kv_blocks=16, weights_cache_dir=cache).generate("ab", params)
        for cache in (None, str(folder), folder)
    ]
    assert (
        answers[0][0].outputs[0].token_ids == answers[1][0].outputs[0].token_ids == answers[2][0].outputs[0].token_ids
    )
    assert len(files(folder)) == 1
    for wrong in (3, ""):
        with pytest.raises(ValueError, match=rf"weights_cache_dir: expected a folder's path, got {wrong!r}"):
            pybatch.LLM(tiny_model, weights_cache_dir=wrong)  # type: ignore[arg-type]
