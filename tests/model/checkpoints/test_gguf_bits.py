"""quantization="gguf": the decoder holds the bits of the file, and answers as the file's weights do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf_blocks import OTHERS
from model.families import GPT, HYBRID, SMALL, some_ids
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from torch import Tensor
from transformers import (
    FalconConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
from transformers.models.qwen3_5 import Qwen3_5TextConfig

from pybatch import ops
from pybatch.model import Decoder, load_model
from pybatch.model.blocks.gated_delta_net import GatedDeltaNet
from pybatch.model.layers import GGUFLinear, Linear, SideBySide

SHAPE = {**SMALL, "hidden_size": 256, "intermediate_size": 512}  # K-quants have blocks of 256
WITHOUT_GROUPS = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=64, tie_word_embeddings=True),
    "gpt2": GPT2Config(**GPT | {"n_embd": 256}),
    "gptneox": GPTNeoXConfig(**WITHOUT_GROUPS),
    "falcon": FalconConfig(**WITHOUT_GROUPS, new_decoder_architecture=True, num_kv_heads=2),
    "qwen35": Qwen3_5TextConfig(**HYBRID | SHAPE | {"head_dim": 64, "linear_value_head_dim": 64}),
}
OTHERWISE = ("gpt2", "gptneox", "falcon", "qwen35")  # than Hugging Face's tensors lie those of the file
KINDS = [Kind[name] for name in ops.GGUF_BLOCKS]


def mixed(name: str) -> Kind:
    """A type of its own for each part of a fused projection, and some that stay as they are."""
    kinds = {"q_proj": Kind.Q4_K, "k_proj": Kind.Q6_K, "v_proj": Kind.BF16, "up_proj": Kind.Q8_0, "o_proj": Kind.F16}
    return kinds.get(name.split(".")[-2], Kind.Q4_1)


def write(path: Path, arch: str, kind: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[arch]).eval()
    writer = begin(path, arch, model)
    write_tensors(writer, arch, model, kind)
    finish(writer)
    return model


def linears(decoder: Decoder) -> Iterator[Linear]:
    yield from (decoder.embedding, decoder.head.linear)
    for layer in decoder.layers:
        mixer, mlp = layer.mixer, layer.mlp
        inner = mixer.projection if isinstance(mixer, GatedDeltaNet) else mixer.qkv
        yield from (inner.linear, mixer.out.linear, mlp.gate_up.linear, mlp.down.linear)


def weights_of(linear: Linear, k: int) -> Tensor:
    """A projection's weights as it has them, each row read as an embedding."""
    if isinstance(linear, SideBySide):
        parts = [weights_of(part, k) for part in linear.parts]
        return ops.interleave_gate_up(*parts) if len(parts) == 2 else torch.cat(parts)
    return linear.embed(torch.arange(linear.width), torch.empty(linear.width, k))


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        *(("llama", kind) for kind in (*KINDS, mixed)),
        *(("qwen2", mixed), ("qwen3", Kind.Q4_K)),
        *((arch, Kind.Q8_0) for arch in OTHERWISE),
    ],
)
def test_the_weights_are_those_of_the_file(arch: str, kind: object, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", arch, kind)
    packed = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    plain = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder
    for ours, theirs in zip(linears(packed), linears(plain), strict=True):
        k = theirs.weight[0].numel() // ops.PANEL
        assert torch.equal(weights_of(ours, k), weights_of(theirs, k))
        assert isinstance(ours, GGUFLinear) or kind is mixed
    assert (packed.embedding is packed.head.linear) == CONFIGS[arch].tie_word_embeddings


@pytest.mark.parametrize(("arch", "kind"), [*(("llama", kind) for kind in KINDS), ("qwen2", Kind.Q8_0)])
def test_logits_point_the_same_way(arch: str, kind: Kind, tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", arch, kind)
    packed = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    plain = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder
    ids = some_ids(50)
    assert torch.cosine_similarity(logits_of(packed, ids), logits_of(plain, ids)).mean() > 0.995


def test_parts_of_several_types_write_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", "qwen2", mixed)
    decoder = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    qkv = decoder.layers[0].mixer.qkv.linear
    assert isinstance(qkv, SideBySide)
    assert [type(part).__name__ for part in qkv.parts] == ["GGUFLinear", "GGUFLinear", "DenseLinear"]
    x, width = torch.randn(5, 256), sum(qkv.widths)
    out = qkv(x, torch.empty(5, width))
    bias = torch.cat([part.bias for part in qkv.parts])
    expected = x @ weights_of(qkv, 256).t() + bias
    assert torch.cosine_similarity(out, expected).min() > 0.999

    normed_gate_up = decoder.layers[0].mlp.gate_up
    gate_up, norm = normed_gate_up.linear, normed_gate_up.norm.weight
    assert isinstance(gate_up, SideBySide)
    fused = gate_up(x, torch.empty(5, 512), norm=norm, norm_eps=1e-5, epilogue=ops.Epilogue.SILU_MUL)
    normed = ops.rms_norm(x, norm, 1e-5)
    assert torch.equal(fused, ops.silu_mul(torch.cat([part(normed, torch.empty(5, 512)) for part in gate_up.parts], 1)))


def test_heads_in_another_order_become_eight_bits_where_blocks_are_longer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "model.gguf", "qwen35", Kind.Q4_K)
    with caplog.at_level("WARNING"):
        packed = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    assert "as they are, so they become Q8_0: 2 of Q4_K" in caplog.text
    plain = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder
    for ours, theirs in zip(linears(packed), linears(plain), strict=True):
        exact, found = (weights_of(each, theirs.weight[0].numel() // ops.PANEL) for each in (theirs, ours))
        assert isinstance(ours, GGUFLinear)
        assert (found - exact).abs().max() <= exact.abs().max() / 220
    assert torch.cosine_similarity(logits_of(packed, some_ids(50)), logits_of(plain, some_ids(50))).mean() > 0.99


def test_it_takes_the_memory_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write(path, "llama", Kind.Q4_0)
    decoder = load_model(path, quantization="gguf", skip_tokenizer=True).decoder
    assert decoder.weight_bytes() < 1.1 * path.stat().st_size  # 211 tokens are padded to 224


def test_types_without_a_kernel_become_eight_bits_and_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every projection of a layer another type; a file's own 16 bits stay."""
    kinds = {f"{name}_proj": Kind[kind] for name, kind in zip(("q", "k", "v", "o", "gate", "up"), OTHERS, strict=False)}
    write(tmp_path / "model.gguf", "llama", lambda name: kinds.get(name.split(".")[-2], Kind.BF16))
    with caplog.at_level("WARNING"):
        packed = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    layers = CONFIGS["llama"].num_hidden_layers
    named = ", ".join(f"{layers} of {kind.name}" for kind in sorted(kinds.values()))
    assert f"as they are, so they become Q8_0: {named}" in caplog.text
    plain = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder
    for ours, theirs in zip(linears(packed), linears(plain), strict=True):
        exact = weights_of(theirs, theirs.weight[0].numel() // ops.PANEL).unflatten(1, (-1, 32))
        error = (weights_of(ours, exact[0].numel()).view_as(exact) - exact).abs()
        assert (error <= exact.abs().amax(2, keepdim=True) / 220 + 4e-6).all()  # scales are fp16
    down, qkv = packed.layers[0].mlp.down.linear, packed.layers[0].mixer.qkv.linear
    assert isinstance(qkv, GGUFLinear)
    assert qkv.weight.shape[2] == 16 * 34
    assert down.weight.dtype == torch.bfloat16


def test_a_file_of_medium_size_with_narrow_rows_takes_its_own_memory(tmp_path: Path) -> None:
    """As llama.cpp makes Q4_K_M of rows of 896, which are no blocks of 256: Q5_0, Q8_0 and some Q4_K."""
    kinds = {"embed_tokens": Kind.Q8_0, "down_proj": Kind.Q4_K, "v_proj": Kind.Q8_0}
    config = Qwen2Config(**{**SMALL, "hidden_size": 896, "intermediate_size": 1024, "tie_word_embeddings": True})
    path = tmp_path / "model.gguf"
    model = AutoModelForCausalLM.from_config(config).eval()
    writer = begin(path, "qwen2", model)
    write_tensors(writer, "qwen2", model, lambda name: kinds.get(name.split(".")[-2], Kind.Q5_0))
    finish(writer)
    decoder = load_model(path, quantization="gguf", skip_tokenizer=True).decoder
    assert decoder.weight_bytes() < 1.1 * path.stat().st_size
