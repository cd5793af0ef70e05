"""Quantised safetensors checkpoints: read as the formats have them, run from their own bits where there is a kernel for
them, and answer as the dequantised weights do in transformers."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from model.checkpoints import quantizing as q
from model.checkpoints.test_gguf_bits import linears, weights_of
from model.families import SMALL, reference_logits, some_ids
from model.paged import logits_of
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, PreTrainedModel, Qwen2Config
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from pybatch import ops
from pybatch.model import ModelError, load_model, loader
from pybatch.model.checkpoints.safetensors import SafetensorsCheckpoint
from pybatch.model.layers import DenseLinear, GGUFLinear, ScaledLinear
from pybatch.model.rows import BlockRows, sliced, turned

SHAPE = {**SMALL, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2}
IDS = some_ids(40)


class Case(NamedTuple):
    quantize: Callable[[Tensor], q.Quantized]
    config: dict[str, Any]
    kind: str  # how it runs
    told: str = "run from their own bits"


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": {}}}
INT8 = {"group_0": {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8, "dynamic": True}}}
W8A8 = {"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": INT8}
FP8 = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": {}}}
TORCHAO = {"quant_method": "torchao"}
REQUANTIZED = "become Q8_0, for they have"

CASES = {
    "gptq": Case(q.gptq, GPTQ, "Q4_0"),
    "gptq-64": Case(partial(q.gptq, group=64), {**GPTQ, "group_size": 64}, "Q4_0"),
    "gptq-rows": Case(partial(q.gptq, group=-1), {**GPTQ, "group_size": -1}, "Q4_0"),
    "gptq-zeros": Case(partial(q.gptq, symmetric=False), GPTQ, "Q4_1"),
    "gptq-v2": Case(partial(q.gptq, symmetric=False, version=2), {**GPTQ, "checkpoint_format": "gptq_v2"}, "Q4_1"),
    "gptq-format": Case(partial(q.gptq, symmetric=False, version=2), {**GPTQ, "format": "gptq_p"}, "Q4_1"),
    "gptq-8": Case(partial(q.gptq, bits=8), {**GPTQ, "bits": 8}, "Q8_0"),
    "gptq-8-zeros": Case(partial(q.gptq, bits=8, symmetric=False), {**GPTQ, "bits": 8}, "Q8_0", REQUANTIZED),
    "gptq-3": Case(partial(q.gptq, bits=3), {**GPTQ, "bits": 3}, "Q4_0"),
    "gptq-2": Case(partial(q.gptq, bits=2, symmetric=False), {**GPTQ, "bits": 2}, "Q4_1"),
    "gptq-order": Case(partial(q.gptq, act_order=True), {**GPTQ, "desc_act": True}, "Q8_0", REQUANTIZED),
    "auto-round": Case(q.gptq, {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:gptq"}, "Q4_0"),
    "awq": Case(q.awq, AWQ, "Q4_1"),
    "awq-rows": Case(partial(q.awq, group=-1), {**AWQ, "group_size": -1}, "Q4_1"),
    "w4a16": Case(q.pack_quantized, PACKED, "Q4_0"),
    "w4a16-rows": Case(partial(q.pack_quantized, group=-1), PACKED, "Q4_0"),
    "w4a16-zeros": Case(partial(q.pack_quantized, symmetric=False), PACKED, "Q4_1"),
    "w4a16-order": Case(partial(q.pack_quantized, act_order=True), PACKED, "Q8_0", REQUANTIZED),
    "w8a16": Case(partial(q.pack_quantized, bits=8), PACKED, "Q8_0"),
    "w8a8": Case(q.w8a8, W8A8, "int8"),
    "w8a8-tensor": Case(partial(q.w8a8, channels=False), W8A8, "int8"),
    "fp8-tensor": Case(partial(q.float8, name="weight_scale"), FP8, "Q8_0", REQUANTIZED),
    "fp8-rows": Case(lambda w: q.float8(w, (1, w.shape[1]), "weight_scale"), FP8, "Q8_0", REQUANTIZED),
    "fp8-blocks": Case(
        partial(q.float8, block=(48, 128)),
        {"quant_method": "fp8", "weight_block_size": [48, 128]},
        "Q8_0",
        REQUANTIZED,
    ),
    "fp8-one": Case(q.float8, {"quant_method": "fp8", "weight_block_size": None}, "Q8_0", REQUANTIZED),
    "nvfp4": Case(
        partial(q.nvfp4, names=("weight_packed", "weight_scale", "weight_global_scale"), multiplied=False),
        {**FP8, "format": "nvfp4-pack-quantized"},
        "Q8_0",
        REQUANTIZED,
    ),
    "mxfp4": Case(q.mxfp4, {**FP8, "format": "mxfp4-pack-quantized"}, "MXFP4"),
    "modelopt-fp8": Case(partial(q.float8, name="weight_scale"), {"quant_method": "modelopt"}, "Q8_0", REQUANTIZED),
    "modelopt-nvfp4": Case(
        partial(q.nvfp4, names=("weight", "weight_scale", "weight_scale_2"), multiplied=True),
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        "Q8_0",
        REQUANTIZED,
    ),
    "bnb-int8": Case(q.bnb_int8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "Q8_0"),
    "bnb-nf4": Case(q.bnb_nf4, BNB, "Q8_0", REQUANTIZED),
    "bnb-nf4-nested": Case(partial(q.bnb_nf4, nested=True), BNB, "Q8_0", REQUANTIZED),
    "torchao-int4": Case(q.torchao_int4, TORCHAO, "Q4_1"),
    "torchao-intx": Case(q.torchao_intx, TORCHAO, "Q4_1"),
    "torchao-int8": Case(q.torchao_int8, TORCHAO, "Q8_0"),
    "torchao-w8a8": Case(partial(q.torchao_int8, activations=True), TORCHAO, "int8"),
}  # fmt: skip


def made(directory: Path, case: Case, keep: tuple[str, ...] = (), **config: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**{**SHAPE, **config}), attn_implementation="eager").eval()
    q.write(directory, model, case.quantize, case.config, keep)
    return model


def matrices(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return [(n, w.detach()) for n, w in model.named_parameters() if w.ndim == 2 and ".layers." in n]


@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_dequantised_weights(name: str, tmp_path: Path) -> None:
    model = made(tmp_path, CASES[name], num_hidden_layers=1)
    checkpoint = SafetensorsCheckpoint(tmp_path)
    for key, weight in matrices(model):
        rows = checkpoint[key]
        assert tuple(rows.shape) == tuple(weight.shape)
        for part in (slice(0, len(weight)), slice(16, 48), slice(3, 12)):
            torch.testing.assert_close(rows[part].float(), weight[part], rtol=1e-6, atol=1e-7)
            rows.release(part)
            torch.testing.assert_close(rows[part].float(), weight[part], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", CASES)
def test_matrices_run_from_their_own_bits(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    case = CASES[name]
    model = made(tmp_path, case)
    with caplog.at_level(logging.INFO):
        decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    assert [record.levelname for record in caplog.records] == ["WARNING" if case.told == REQUANTIZED else "INFO"]
    assert case.told in caplog.text
    layer = decoder.layers[0]
    down = model.get_submodule("model.layers.0.mlp.down_proj").weight.detach()
    linear = layer.mlp.down.linear
    kind = ScaledLinear if case.kind == "int8" else GGUFLinear
    assert isinstance(linear, kind)
    if case.kind != "int8":
        block = ops.GGUF_BLOCKS[case.kind]
        assert linear.weight[0].numel() == ops.PANEL * down.shape[1] // block.weights * block.bytes
    ours = weights_of(linear, down.shape[1])
    step = down.abs().max() / (200 if case.told == REQUANTIZED else 3000 if case.kind == "Q4_1" else 1e6)
    torch.testing.assert_close(ours, down, rtol=1e-3 if case.kind == "Q8_0" else 1e-6, atol=float(step))
    found, expected = logits_of(decoder, IDS), reference_logits(model, IDS)
    assert torch.cosine_similarity(found, expected).min() > 0.99


@pytest.mark.parametrize("name", ["fp8-tensor", "fp8-rows", "fp8-blocks", "fp8-one", "modelopt-fp8"])
def test_float8_runs_from_its_own_bits_where_kernels_widen_it(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on GPUs."""
    model = made(tmp_path, CASES[name])
    monkeypatch.setattr(loader, "open_checkpoint", lambda path, _: SafetensorsCheckpoint(path, own_float8=True))
    with caplog.at_level(logging.INFO):
        decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    assert "14 run from their own bits (fp8)" in caplog.text
    linear = decoder.layers[0].mlp.down.linear
    assert isinstance(linear, ScaledLinear)
    assert linear.weight.dtype == torch.float8_e4m3fn
    down = model.get_submodule("model.layers.0.mlp.down_proj").weight.detach()
    torch.testing.assert_close(weights_of(linear, down.shape[1]), down, rtol=1e-6, atol=0)
    whole = logits_of(decoder, IDS)
    model.save_pretrained(tmp_path / "dequantised")
    dequantised = AutoModelForCausalLM.from_pretrained(tmp_path / "dequantised", attn_implementation="eager").eval()
    torch.testing.assert_close(whole, reference_logits(dequantised, IDS), rtol=1e-4, atol=1e-4)
    assert torch.equal(logits_of(decoder, IDS, [1, 16, 20, 3]), whole)


def test_float8_that_is_no_number_is_refused(tmp_path: Path) -> None:
    made(tmp_path, CASES["fp8-rows"], num_hidden_layers=1)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = torch.nan
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"down_proj\.weight_scale: expected float8 weights that are numbers, got nan"):
        load_model(tmp_path, skip_tokenizer=True)


@pytest.mark.parametrize("name", ["gptq", "w8a8", "fp8-blocks"])
def test_modules_that_are_not_quantised_have_plain_weights(name: str, tmp_path: Path) -> None:
    """Parts of a fused projection too: each is a product of its own."""
    keep = ("k_proj", "up_proj", "1.mlp.down_proj")
    model = made(tmp_path, CASES[name], keep)
    decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    qkv = decoder.layers[0].mixer.qkv.linear
    assert [isinstance(part, DenseLinear) for part in qkv.parts] == [False, True, False]
    assert isinstance(decoder.layers[1].mlp.down.linear, DenseLinear)
    found, expected = logits_of(decoder, IDS), reference_logits(model, IDS)
    assert torch.cosine_similarity(found, expected).min() > 0.99


def test_the_method_may_be_given_as_in_vllm_and_must_be_that_of_the_checkpoint(tmp_path: Path) -> None:
    made(tmp_path, CASES["gptq"])
    plain = load_model(tmp_path, skip_tokenizer=True).decoder
    for name in ("gptq", "gptq_marlin"):
        named = load_model(tmp_path, quantization=name, skip_tokenizer=True).decoder
        assert torch.equal(logits_of(named, IDS), logits_of(plain, IDS))
    with pytest.raises(ModelError, match=r"'awq' asks for a checkpoint of it, and .* is quantised by gptq"):
        load_model(tmp_path, quantization="awq", skip_tokenizer=True)


@pytest.mark.parametrize("name", ["gptq-zeros", "awq", "w8a8", "fp8-blocks", "bnb-nf4-nested"])
@pytest.mark.parametrize("quantization", ["int8", "int8-weight-only"])
def test_another_quantization_is_of_the_dequantised_weights(
    name: str, quantization: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = made(tmp_path / "quantised", CASES[name])
    model.half().save_pretrained(tmp_path / "plain")
    found = load_model(tmp_path / "quantised", quantization=quantization, skip_tokenizer=True).decoder
    plain = load_model(tmp_path / "plain", quantization=quantization, skip_tokenizer=True).decoder
    assert torch.cosine_similarity(logits_of(found, IDS), logits_of(plain, IDS)).min() > 0.995
    assert not caplog.records


def test_rows_that_are_no_whole_blocks_stay_floats_of_16_bits(tmp_path: Path) -> None:
    case = Case(partial(q.gptq, group=8), {**GPTQ, "group_size": 8}, "")
    model = made(tmp_path, case, hidden_size=72, intermediate_size=88, num_attention_heads=3, num_key_value_heads=1)
    decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    assert {linear.weight.dtype for linear in linears(decoder) if isinstance(linear, DenseLinear)} == {torch.float16}
    assert torch.cosine_similarity(logits_of(decoder, IDS), reference_logits(model, IDS)).min() > 0.9999


def test_a_head_and_biases_beside_quantised_matrices(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE), attn_implementation="eager").eval()
    q.write(tmp_path, model, q.gptq, GPTQ)
    tensors = load_file(tmp_path / "model.safetensors")
    head = q.gptq(tensors.pop("lm_head.weight").float())
    tensors |= {f"lm_head.{name}": tensor.contiguous() for name, tensor in head.tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        model.lm_head.weight.copy_(head.weight)
    decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    assert isinstance(decoder.head.linear, GGUFLinear)
    assert torch.cosine_similarity(logits_of(decoder, IDS), reference_logits(model, IDS)).min() > 0.99


def test_groups_of_one_config_may_be_quantised_in_several_ways(tmp_path: Path) -> None:
    """By the tensors of each module: here W8A8 attention and W4A16 MLPs."""
    case = Case(lambda w: q.pack_quantized(w) if 192 in w.shape else q.w8a8(w), W8A8, "")
    model = made(tmp_path, case)
    layer = load_model(tmp_path, skip_tokenizer=True).decoder.layers[0]
    assert isinstance(layer.mixer.qkv.linear, ScaledLinear)
    assert isinstance(layer.mlp.gate_up.linear, GGUFLinear)
    decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    assert torch.cosine_similarity(logits_of(decoder, IDS), reference_logits(model, IDS)).min() > 0.99


def test_rows_that_are_taken_apart_keep_their_bits(tmp_path: Path) -> None:
    for name in ("gptq", "w8a8"):
        made(tmp_path / name, CASES[name], num_hidden_layers=1)
        whole = SafetensorsCheckpoint(tmp_path / name)["model.layers.0.mlp.down_proj.weight"]
        part, order = sliced(whole, 32, 96), turned(whole, 4, 32)
        assert torch.equal(part[0:64], whole[32:96])
        assert torch.equal(order[0:128].sort(0).values, whole[0:128].sort(0).values)
        if isinstance(part, BlockRows):
            assert torch.equal(part.blocks[0:64], whole.blocks[32:96])
        else:
            assert torch.equal(part.codes[0:64] * part.row_scales[0:64], part[0:64])
            assert torch.equal(order.codes[0:128] * order.row_scales[0:128], order[0:128])


@pytest.mark.parametrize("name", ["gptq", "w8a8", "bnb-nf4"])
def test_what_an_adapter_changes_becomes_blocks_of_8_bits(name: str, tmp_path: Path) -> None:
    """As do the bases of QLoRA."""
    model = made(tmp_path / "base", CASES[name], num_hidden_layers=1)
    down = "model.layers.0.mlp.down_proj"
    a, b = torch.randn(4, 192) * 0.1, torch.randn(128, 4) * 0.1
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    names = [f"base_model.model.{down}.lora_{part}.weight" for part in "AB"]
    save_file(dict(zip(names, (a, b), strict=True)), adapter / "adapter_model.safetensors")
    decoder = load_model(tmp_path / "base", adapter=adapter, skip_tokenizer=True).decoder
    merged = model.get_submodule(down).weight.detach() + b @ a
    linear = decoder.layers[0].mlp.down.linear
    assert isinstance(linear, GGUFLinear)
    assert linear.weight[0].numel() == ops.PANEL * 192 // 32 * ops.GGUF_BLOCKS["Q8_0"].bytes
    assert (weights_of(linear, 192) - merged).abs().max() < merged.abs().max() / 200


@pytest.mark.parametrize("name", ["gptq", "w8a8"])
def test_a_sequence_has_the_same_bits_however_it_is_cut(name: str, tmp_path: Path) -> None:
    made(tmp_path, CASES[name])
    decoder = load_model(tmp_path, skip_tokenizer=True).decoder
    whole = logits_of(decoder, IDS)
    assert torch.equal(logits_of(decoder, IDS, [1, 16, 20, 3]), whole)


@pytest.mark.parametrize(
    ("file", "content", "case"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False}, "gptq"),
        ("quant_config.json", {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}, "awq"),
        ("hf_quant_config.json", {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "A"}}, "fp8-tensor"),
    ],
)  # fmt: skip
def test_files_beside_config_json_tell_the_method_too(
    file: str, content: dict[str, Any], case: str, tmp_path: Path
) -> None:
    made(tmp_path, CASES[case])
    before = logits_of(load_model(tmp_path, skip_tokenizer=True).decoder, IDS)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / file).write_text(json.dumps(content))
    assert tmp_path / file in SafetensorsCheckpoint(tmp_path).files()
    assert torch.equal(logits_of(load_model(tmp_path, skip_tokenizer=True).decoder, IDS), before)


def test_scales_of_activations_are_not_missed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(tmp_path, CASES["w8a8"])
    tensors = load_file(tmp_path / "model.safetensors")
    tensors |= {f"model.layers.0.self_attn.{name}": torch.ones(1) for name in ("q_proj.input_scale", "k_scale")}
    save_file(tensors, tmp_path / "model.safetensors")
    load_model(tmp_path, skip_tokenizer=True)
    assert not caplog.records


Q_PROJ = "model.layers.0.self_attn.q_proj"


def drop(name: str) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{Q_PROJ}.{name}"]

    return edit


def put_beside(name: str) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q_PROJ}.{name}"] = torch.ones(128)

    return edit


def put(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[f"{Q_PROJ}.{name}"] = change(tensors[f"{Q_PROJ}.{name}"]).contiguous()

    return edit


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("gptq", drop("scales"), "expected the tensor '.*q_proj.scales', which is not there"),
        ("gptq", put("scales", lambda t: t[:, :-1]), r"q_proj\.scales: expected shape \[any, 128\], got \[4, 127\]"),
        ("gptq", put("qzeros", lambda t: t[:, :-3]), r"q_proj: expected codes of 2, 3, 4, 8 bits, got qweight"),
        ("gptq", put("qweight", lambda t: t.float()), r"q_proj.qweight' is F32; expected one of I32"),
        ("gptq-order", put("g_idx", lambda t: t + 1), "q_proj: expected groups of columns from 0 to 3, got 1 to 4"),
        ("gptq", put("scales", lambda t: t * torch.inf), "q_proj: expected scales that float16 can hold, got inf"),
        ("awq", put("qzeros", lambda t: t[:-1]), r"q_proj\.qzeros: expected shape \[4, 16\], got \[3, 16\]"),
        ("w4a16", put("weight_packed", lambda t: t[:, :-3]), r"q_proj: expected weight_packed with 2, 4, 8 bits"),
        ("w4a16", drop("weight_shape"), "expected the tensor '.*q_proj.weight_shape', which is not there"),
        ("w8a8", put("weight_scale", lambda t: t[1:]), r"scale: expected one, or those of the 128 rows of \[128, "),
        ("fp8-blocks", put("weight_scale_inv", lambda t: t[1:]), "weight_scale_inv: expected one, or those of the"),
        ("fp8-blocks", put("weight", lambda t: t.half()), "q_proj.weight' is F16; expected one of F8_E4M3, F8_E5M2"),
        ("bnb-nf4", drop("weight.quant_map"), "expected the tensor '.*q_proj.weight.quant_map', which is not there"),
        ("bnb-nf4", put("weight", lambda t: t[1:]), r"expected the 8,192 bytes of \[128, 128\], got 8,191"),
        ("bnb-nf4", put("weight.quant_state.bitsandbytes__nf4", lambda t: t[1:]), "__nf4: expected a JSON object, got"),
        ("modelopt-fp8", put_beside("pre_quant_scale"), "q_proj: pre_quant_scale scales activations"),
        ("torchao-int4", put_beside("_weight_act_pre_scale"), "q_proj.weight: act_pre_scale scales activations"),
        ("torchao-int4", drop("_weight_scale"), "expected the tensor '.*q_proj._weight_scale', which is not there"),
    ],
)  # fmt: skip
def test_damaged_tensors_are_named_with_what_was_expected(
    case: str, change: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    made(tmp_path, CASES[case], num_hidden_layers=1)
    path = tmp_path / "model.safetensors"
    texts = _texts(path)
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, texts)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(tmp_path, skip_tokenizer=True)
    assert "\n" not in str(caught.value)


def _texts(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return dict(header["__metadata__"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "hqq"}, "is quantised by hqq, whose .*; expected one of gptq, awq"),
        ({"quant_method": "aqlm"}, "is quantised by aqlm; expected one of gptq, awq"),
        ({"quant_method": "quanto"}, "is quantised by quanto, .*: take the model that it was made of"),
        ({"quant_method": "gptq", "bits": 5}, "quantization_config of .*: bits: expected one of 2, 3, 4, 8, got 5"),
        ({"quant_method": "gptq"}, "quantization_config of .*: expected bits, which is not there"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format: expected one of gptq, .*, got 'marlin'"),
        ({**GPTQ, "format": "exl3", "checkpoint_format": "gptq"}, "format: expected one of gptq, .*, got 'exl3'"),
        ({**PACKED, "transform_config": {"config_groups": {"a": {}}}}, "transform_config turns activations"),
        ({**AWQ, "version": "gemv"}, "version: expected one of gemm, GEMM, got 'gemv'"),
        (
            {**PACKED, "sparsity_config": {"format": "sparse-24-bitmask"}},
            "expected dense weights, got sparse-24",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size: expected a list of two sizes, got"),
        ("gptq", "quantization_config: expected an object, got 'gptq'"),
    ],
)
def test_methods_that_are_refused(config: Any, message: str, tmp_path: Path) -> None:
    made(tmp_path, CASES["gptq"]._replace(config=config), num_hidden_layers=1)
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path, skip_tokenizer=True)


@pytest.mark.parametrize("name", ["bnb-int8", "bnb-nf4-nested"])
def test_bitsandbytes_tells_itself_without_a_config(name: str, tmp_path: Path) -> None:
    made(tmp_path, CASES[name])
    told = load_model(tmp_path, skip_tokenizer=True)
    without_config(tmp_path)
    alone = load_model(tmp_path, skip_tokenizer=True)
    assert torch.equal(logits_of(alone.decoder, IDS), logits_of(told.decoder, IDS))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        (("W_q", "scale", "zero"), "is quantised by hqq, whose .*: take the model that it was made of"),
        (("weight._data", "weight._scale"), "is quantised by quanto, whose .*: take the model that it was made of"),
        (("weight", "scales", "biases"), "is quantised by mlx, whose .*: take the model that it was made of"),
        (("trellis", "suh"), "is quantised by exl3, whose .*: take the model that it was made of"),
        (("qweight", "scales"), "qweight' is of a model quantised by gptq or awq, of which config.json has no"),
        (("weight", "weight_scale_inv"), "_inv' is of a model quantised by fp8, of which config.json has no"),
    ],
)
def test_tensors_tell_a_method_where_the_config_does_not(ends: tuple[str, ...], message: str, tmp_path: Path) -> None:
    made(tmp_path, CASES["gptq"], num_hidden_layers=1)
    without_config(tmp_path)
    tensors = {f"model.layers.0.self_attn.q_proj.{end}": torch.zeros(4, 4) for end in ends}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        load_model(tmp_path, skip_tokenizer=True)


def test_mlx_is_refused_by_name(tmp_path: Path) -> None:
    """Its config.json says twice how it is quantised, and by which method in neither place."""
    made(tmp_path, CASES["gptq"], num_hidden_layers=1)
    fields = json.loads((tmp_path / "config.json").read_text())
    settings = {"group_size": 64, "bits": 4}
    (tmp_path / "config.json").write_text(
        json.dumps({**fields, "quantization": settings, "quantization_config": settings})
    )
    with pytest.raises(ModelError, match="is quantised by mlx, whose tensors are laid out for that library"):
        load_model(tmp_path, skip_tokenizer=True)


def without_config(directory: Path) -> None:
    fields = json.loads((directory / "config.json").read_text())
    del fields["quantization_config"]
    (directory / "config.json").write_text(json.dumps(fields))
