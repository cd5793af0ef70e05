"""A model in several GGUF files is the model in one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from model.families import make, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of

from pybatch.model import ModelError, load_model
from pybatch.model.checkpoints.gguf_checkpoint import GGUFCheckpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """whole.gguf, and the same model as split-00001-of-00003.gguf and so on."""
    folder, model = tmp_path_factory.mktemp("parts"), make("llama2")
    count = len(list(model.named_parameters()))
    for name, options in (("whole", {}), ("split", {"split_max_tensors": -(-count // 3)})):
        writer = begin(folder / f"{name}.gguf", "llama", model, **options)
        write_tensors(writer, "llama", model, Kind.F32)
        finish(writer)
    return folder


def part(number: int) -> str:
    return f"split-{number:05}-of-00003.gguf"


@pytest.mark.parametrize("number", [1, 3])
def test_any_part_stands_for_all(folder: Path, number: int) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [*(part(n) for n in (1, 2, 3)), "whole.gguf"]
    whole = load_model(folder / "whole.gguf", skip_tokenizer=True)
    split = load_model(folder / part(number), skip_tokenizer=True)
    assert torch.equal(logits_of(split.decoder, some_ids(20)), logits_of(whole.decoder, some_ids(20)))
    assert (split.config.name, split.config.eos_token_ids) == (whole.config.name, whole.config.eos_token_ids)
    assert [path.name for path in GGUFCheckpoint(folder / part(number)).files()] == [part(n) for n in (1, 2, 3)]


def copy_to(path: Path, folder: Path, names: dict[str, str]) -> None:
    for source, target in names.items():
        shutil.copy(folder / source, path / target)


def test_a_part_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    copy_to(tmp_path, folder, {part(1): part(1), part(3): part(3)})
    with pytest.raises(ModelError, match=r"expected the 3 parts .* beside it; not there: split-00002-of-00003"):
        load_model(tmp_path / part(3))
    (tmp_path / part(1)).unlink()
    with pytest.raises(ModelError, match=r"not there: split-00001-of-00003\.gguf and 1 more"):
        load_model(tmp_path / part(3))


def test_parts_with_names_of_others_are_refused(folder: Path, tmp_path: Path) -> None:
    copy_to(tmp_path, folder, {part(1): "model.gguf"})
    with pytest.raises(ModelError, match=r"a name such as NAME-00001-of-00003\.gguf, for .* it is one of 3"):
        load_model(tmp_path / "model.gguf")
    copy_to(tmp_path, folder, {part(1): part(1), part(2): part(3), part(3): part(2)})
    with pytest.raises(ModelError, match=r"00002-of-00003\.gguf: expected part 2 of its model, got 3"):
        load_model(tmp_path / part(1))
    copy_to(tmp_path, folder, {"whole.gguf": "m-00001-of-00002.gguf", part(1): "m-00002-of-00002.gguf"})
    with pytest.raises(ModelError, match=r"m-00001-of-00002\.gguf: expected a name"):
        load_model(tmp_path / "m-00001-of-00002.gguf")
