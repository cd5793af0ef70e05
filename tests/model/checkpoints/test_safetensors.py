"""Which files of a directory are the model, and what its tied embeddings are."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from model.families import make, save, some_ids
from model.paged import logits_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch.model import ModelError, load_model

Tensors = dict[str, Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
IDS = some_ids(20)


@pytest.fixture
def tied(tmp_path: Path) -> Path:
    return save(make("smollm2"), tmp_path / "tied")


@pytest.fixture
def untied(tmp_path: Path) -> Path:
    return save(make("llama2"), tmp_path / "untied")


def rewrite(directory: Path, change: Callable[[Tensors], Tensors], name: str = "model.safetensors") -> None:
    save_file(change(load_file(directory / "model.safetensors")), directory / name, {"format": "pt"})


def ours(directory: Path) -> Tensor:
    return logits_of(load_model(directory, skip_tokenizer=True).decoder, IDS)


def theirs(directory: Path) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([IDS])).logits[0]
    return logits


def another(tensors: Tensors) -> Tensor:
    return torch.randn(tensors[EMBEDDING].shape, generator=torch.Generator().manual_seed(1)) * 0.2


@pytest.mark.parametrize(
    ("change", "is_tied"),
    [
        (lambda tensors: tensors, True),
        (lambda tensors: {**tensors, HEAD: tensors[EMBEDDING].clone()}, True),
        (lambda tensors: {**tensors, HEAD: another(tensors)}, False),
        (lambda tensors: {HEAD if name == EMBEDDING else name: t for name, t in tensors.items()}, True),
        (lambda tensors: {**tensors, HEAD: tensors[EMBEDDING].half().float()}, False),
    ],
    ids=["embedding", "both, equal", "both, different", "head", "both, nearly equal"],
)
def test_tied_embeddings_are_what_transformers_makes_of_them(
    tied: Path, change: Callable[[Tensors], Tensors], is_tied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    rewrite(tied, change)
    loaded = load_model(tied, skip_tokenizer=True)
    torch.testing.assert_close(logits_of(loaded.decoder, IDS), theirs(tied), rtol=2e-4, atol=2e-4)
    assert (loaded.decoder.head.linear is loaded.decoder.embedding) == is_tied
    assert ("differ: both are used" in caplog.text) == (not is_tied)


@pytest.mark.parametrize("name", [EMBEDDING, HEAD])
def test_untied_embeddings_need_both(untied: Path, name: str) -> None:
    """transformers would make the other one up."""
    rewrite(untied, lambda tensors: {k: t for k, t in tensors.items() if k != name})
    with pytest.raises(ModelError, match=f"has no tensor '{name}', which LlamaForCausalLM needs"):
        load_model(untied, skip_tokenizer=True)


@pytest.mark.parametrize(
    "stray", ["a.safetensors", "z.safetensors", "consolidated.safetensors", "optimizer.safetensors"]
)
def test_files_beside_the_model_are_not_read(untied: Path, stray: str) -> None:
    before = ours(untied)
    rewrite(untied, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()}, stray)
    assert torch.equal(ours(untied), before)


def test_a_model_of_another_name_is_found_if_it_is_the_only_one(untied: Path) -> None:
    before = ours(untied)
    (untied / "model.safetensors").rename(untied / "weights.safetensors")
    assert torch.equal(ours(untied), before)
    (untied / "consolidated.safetensors").write_bytes(b"")
    assert torch.equal(ours(untied), before)
    (untied / "copy.safetensors").write_bytes((untied / "weights.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"cannot tell which of these are the model: .copy\.safetensors, weights"):
        ours(untied)


def test_shards_without_an_index_are_a_model_if_they_are_all_there(untied: Path, tmp_path: Path) -> None:
    before = ours(untied)
    sharded = save(make("llama2"), tmp_path / "sharded", max_shard_size="100KB")
    index = sharded / "model.safetensors.index.json"
    index.unlink()
    assert torch.equal(ours(sharded), before)
    next(sharded.glob("model-00002-of-*")).unlink()
    with pytest.raises(ModelError, match="cannot tell which of these are the model"):
        ours(sharded)


def test_an_index_and_a_whole_file_are_refused_unless_they_agree(untied: Path) -> None:
    before = ours(untied)
    tensors = load_file(untied / "model.safetensors")
    index = untied / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert torch.equal(ours(untied), before)
    (untied / "other.safetensors").write_bytes((untied / "model.safetensors").read_bytes())
    index.write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "other.safetensors")}))
    with pytest.raises(ModelError, match=r"model\.safetensors is there and .* names other files"):
        ours(untied)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        (None, "expected weight_map"),
        ([], "expected weight_map"),
        ({"a": 1}, "expected names of files, got 1"),
        ({"a": "../untied/model.safetensors"}, "expected names of files"),
        ({"a": "model.safetensors"}, "says that model.safetensors holds 'a', but it does not"),
        ({"a": "b.safetensors"}, "names b.safetensors, which is not there|names other files"),
    ],
)
def test_indices_that_are_wrong_are_refused(untied: Path, weight_map: object, message: str) -> None:
    (untied / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ModelError, match=message):
        ours(untied)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_adapters_are_refused_by_name(untied: Path, name: str) -> None:
    (untied / name).write_text("{}")
    with pytest.raises(ModelError, match=f"{name} is of an adapter, which would be left out here: merge it"):
        ours(untied)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456\n"


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "it is a Git LFS pointer, .*: run git lfs pull"),
        (b"", "the file is empty"),
        (b"<html><body>404</body></html>", "it is a web page"),
        (b"[1, 2", "it is damaged or cut short"),
        (b"\xff\xfe\x00", "it is damaged or cut short"),
        (b"[" * 100_000, "it is damaged or cut short"),
        (b'{"a": ' + b"1" * 5000 + b"}", "it is damaged or cut short"),
        (None, "it is a directory"),
    ],
    ids=["pointer", "empty", "page", "cut", "binary", "deep", "long number", "directory"],
)  # fmt: skip
def test_damaged_files_are_named_with_what_they_are(
    untied: Path, name: str, content: bytes | None, message: str
) -> None:
    path = untied / name
    path.unlink()
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: expected a (JSON object|safetensors file), but {message}") as caught:
        ours(untied)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[]", b"3", b'"x"', b"null"])
def test_json_that_is_no_object_is_refused(untied: Path, content: bytes) -> None:
    (untied / "config.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json: expected a JSON object, got (list|int|str|NoneType)"):
        ours(untied)


def test_tensors_of_other_types_are_refused(untied: Path) -> None:
    rewrite(untied, lambda tensors: {**tensors, HEAD: tensors[HEAD].to(torch.int32)})
    with pytest.raises(ModelError, match=r"'lm_head\.weight' is I32; expected one of F32, F16, BF16"):
        ours(untied)


@pytest.mark.parametrize("name", [HEAD, EMBEDDING, "model.layers.1.mlp.up_proj.weight"])
def test_empty_tensors_are_refused_by_name(untied: Path, name: str) -> None:
    """As a rank of DeepSpeed's ZeRO-3 saves weights that others hold."""
    rewrite(untied, lambda tensors: {**tensors, name: torch.empty(0)})
    with pytest.raises(ModelError, match=rf"tensor '{name}' is empty, of shape \[0\]: the checkpoint was saved"):
        ours(untied)


def test_generation_config_is_kept(untied: Path, caplog: pytest.LogCaptureFixture) -> None:
    values = {"eos_token_id": [2, 9999], "temperature": 0.6, "top_p": 0.95}
    (untied / "generation_config.json").write_text(json.dumps(values))
    with caplog.at_level(logging.WARNING):
        loaded = load_model(untied, skip_tokenizer=True)
    assert loaded.generation_config == values
    assert loaded.config.eos_token_ids == (2,)
    assert "outside the vocabulary of 211 are ignored: 9999" in caplog.text
