from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pybatch.jobs.fingerprint import WHOLE, argument_fingerprint, model_fingerprint
from pybatch.model.errors import ModelError


def test_a_tokenizer_counts_by_what_it_holds(tiny_model: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_model, tmp_path / "copy")
    before = argument_fingerprint("tokenizer", tiny_model)
    assert argument_fingerprint("tokenizer", str(copy)) == before
    config = copy / "tokenizer_config.json"
    config.write_text(config.read_text().replace("assistant", "model"))
    assert argument_fingerprint("tokenizer", copy) != before
    with pytest.raises(ModelError):
        argument_fingerprint("tokenizer", tmp_path / "none")


def test_a_generation_config_counts_by_what_it_holds(tmp_path: Path) -> None:
    file = tmp_path / "generation_config.json"
    file.write_text('{"temperature": 0.5}')
    before = argument_fingerprint("generation_config", str(tmp_path))
    file.write_text('{"temperature": 0.6}')
    assert argument_fingerprint("generation_config", str(tmp_path)) != before
    assert argument_fingerprint("generation_config", "vllm") == "vllm"


def test_other_arguments_count_by_their_text() -> None:
    assert argument_fingerprint("seed", 7) == "7"


def test_weights_in_the_middle_of_a_large_file_count(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(2 * WHOLE)
    before = model_fingerprint(path)
    for place in (WHOLE // 2, WHOLE + 12345):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\1" * (4 << 20))  # a small matrix
        assert model_fingerprint(path) != before
        before = model_fingerprint(path)
