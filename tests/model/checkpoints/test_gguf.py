"""A GGUF file is the same model as the Hugging Face directory that it was made from."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFReader, GGUFWriter, PoolingType
from model.families import (
    CONFIGS,
    GPT,
    HYBRID,
    LLAMA3_ROPE,
    LONGROPE,
    MULTIPLIERS,
    NO_MAMBA,
    SMALL,
    YARN_ROPE,
    make,
    reference_logits,
    save,
    some_ids,
)
from model.gguf_writing import begin, finish, write_tensors
from model.paged import logits_of
from transformers import (
    ApertusConfig,
    ArceeConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV2Config,
    DeepseekV3Config,
    Ernie4_5Config,
    Exaone4Config,
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GlmConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteMoeHybridConfig,
    GraniteMoeSharedConfig,
    HunYuanDenseV1Config,
    InternLM3Config,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    MixtralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    OlmoConfig,
    OlmoeConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)
from transformers.models.glm4_moe_lite import Glm4MoeLiteConfig
from transformers.models.qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5_moe import Qwen3_5MoeTextConfig
from transformers.models.qwen3_next import Qwen3NextConfig
from transformers.models.youtu import YoutuConfig

from pybatch.model import ModelError, load_model
from pybatch.model.checkpoints.gguf_file import GGUFFile
from pybatch.model.pooling import PoolingConfig

SHAPE = {**SMALL, "intermediate_size": 96}  # quantisation blocks are 32 long
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
SHAPE_OF_LATENTS = {
    **{key: value for key, value in SHAPE.items() if key != "num_key_value_heads"},
    "q_lora_rank": 64,
    "kv_lora_rank": 64,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 32,
    "v_head_dim": 40,
}
WITHOUT_GROUPS = {key: value for key, value in SHAPE.items() if key != "num_key_value_heads"}
DELTA = {**HYBRID, "intermediate_size": 96, "linear_key_head_dim": 16, "num_hidden_layers": 4}
CONFIGS_BY_ARCH: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True),
    "phi3": Phi3Config(
        **SHAPE,
        tie_word_embeddings=True,
        original_max_position_embeddings=512,
        partial_rotary_factor=0.75,
        sliding_window=20,
        rope_parameters={**LONGROPE, "factor": 8.0},
    ),
    "smollm3": SmolLM3Config(**{**SHAPE, "num_hidden_layers": 4}),
    "ernie4_5": Ernie4_5Config(**SHAPE, head_dim=32),
    "seed_oss": SeedOssConfig(**SHAPE, head_dim=32),
    "starcoder2": Starcoder2Config(**SHAPE, sliding_window=20),
    "arcee": ArceeConfig(**SHAPE),
    "olmo": OlmoConfig(**SHAPE),
    "chatglm": GlmConfig(**SHAPE, head_dim=16, attention_bias=True, partial_rotary_factor=0.5),
    "olmo2": Olmo2Config(**SHAPE),
    "exaone4": Exaone4Config(**{**SHAPE, "num_hidden_layers": 4}, sliding_window=20),
    "glm4": Glm4Config(**SHAPE, head_dim=16),
    "granite": GraniteConfig(
        **SHAPE,
        embedding_multiplier=12.0,
        residual_multiplier=0.22,
        attention_multiplier=0.125,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    ),
    "command-r": CohereConfig(**SHAPE, logit_scale=0.25),
    "cohere2": Cohere2Config(**{**SHAPE, "num_hidden_layers": 4}, sliding_window=20, logit_scale=0.25),
    "stablelm": StableLmConfig(**SHAPE, partial_rotary_factor=0.25, use_qkv_bias=True),
    "stablelm/own-norms": StableLmConfig(
        **SHAPE, partial_rotary_factor=0.25, qk_layernorm=True, use_parallel_residual=True
    ),
    "command-r/own-norms": CohereConfig(**SHAPE, use_qk_norm=True),
    "hunyuan-dense": HunYuanDenseV1Config(**SHAPE, head_dim=32),
    "mistral3": Ministral3Config(
        **SHAPE,
        head_dim=16,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 16,
            "llama_4_scaling_beta": 0.5,
        },
    ),
    "gemma": GemmaConfig(**SHAPE, head_dim=32),
    "gemma2": Gemma2Config(**SHAPE, head_dim=32, query_pre_attn_scalar=32, sliding_window=24),
    "gemma3": Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 7}, head_dim=32, query_pre_attn_scalar=32, sliding_window=24,
        rope_parameters={
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "qwen3moe": Qwen3MoeConfig(**SHAPE, **MOE, num_experts=5, norm_topk_prob=True, head_dim=32),
    "qwen2moe": Qwen2MoeConfig(**SHAPE, **MOE, num_experts=6, shared_expert_intermediate_size=64),
    "gpt-oss": GptOssConfig(
        **SHAPE, head_dim=16, num_local_experts=5, num_experts_per_tok=3, sliding_window=20,
        rope_parameters={**YARN_ROPE, "truncate": False, "original_max_position_embeddings": 16},
    ),
    "deepseek2/v2": DeepseekV2Config(
        **SHAPE_OF_LATENTS | {"q_lora_rank": None}, **MOE, n_routed_experts=6, first_k_dense_replace=1,
        rope_parameters={**YARN_ROPE, "mscale": 0.7, "mscale_all_dim": 0.7},
    ),
    "deepseek2/v3": DeepseekV3Config(
        **SHAPE_OF_LATENTS, **MOE, n_routed_experts=8, n_group=4, topk_group=2, first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    "glm4moe": Glm4MoeConfig(
        **SHAPE, **MOE, head_dim=32, n_routed_experts=6, n_group=2, topk_group=1, use_qk_norm=True, attention_bias=True,
        first_k_dense_replace=1, routed_scaling_factor=1.5,
    ),
    "phi2": PhiConfig(**SHAPE, partial_rotary_factor=0.5),
    "gpt2": GPT2Config(**GPT),
    "gptneox": GPTNeoXConfig(**WITHOUT_GROUPS),
    "gptneox/serial": GPTNeoXConfig(**WITHOUT_GROUPS, use_parallel_residual=False, attention_bias=False),
    "falcon": FalconConfig(**WITHOUT_GROUPS),
    "falcon/grouped": FalconConfig(**WITHOUT_GROUPS, new_decoder_architecture=True, num_kv_heads=2),
    "falcon/one-norm": FalconConfig(
        **WITHOUT_GROUPS, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500042.0}, tie_word_embeddings=False,
    ),
    "nemotron": NemotronConfig(**SHAPE, mlp_bias=True, partial_rotary_factor=0.5),
    "apertus": ApertusConfig(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 12e6}),
    "olmo2/windows": Olmo3Config(
        **SHAPE, sliding_window=24, layer_types=["full_attention", "sliding_attention", "full_attention"],
        rope_parameters={
            "full_attention": {**YARN_ROPE, "rope_theta": 2e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
        },
    ),
    "llama/windows": MistralConfig(**SHAPE, sliding_window=24),
    "llama/mixtral": MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2),
    "llama/internlm3": InternLM3Config(**SHAPE, head_dim=16, attention_bias=True, mlp_bias=True),
    "granitemoe": GraniteMoeConfig(**SHAPE, **MULTIPLIERS, num_local_experts=5, num_experts_per_tok=3),
    "granitemoe/shared": GraniteMoeSharedConfig(
        **SHAPE, **MULTIPLIERS, num_local_experts=4, shared_intermediate_size=32, tie_word_embeddings=True
    ),
    "granitemoe/hybrid": GraniteMoeHybridConfig(
        **SHAPE, **MULTIPLIERS, **NO_MAMBA, num_local_experts=4, shared_intermediate_size=32,
        position_embedding_type="rope",
    ),
    "granite/hybrid": GraniteMoeHybridConfig(
        **SHAPE, **MULTIPLIERS, **NO_MAMBA, num_local_experts=0, shared_intermediate_size=64,
        position_embedding_type="rope",
    ),
    "granite/without-rope": GraniteMoeHybridConfig(
        **SHAPE, **MULTIPLIERS, **NO_MAMBA, num_local_experts=0, shared_intermediate_size=64
    ),
    "qwen3next": Qwen3NextConfig(**DELTA, **MOE, num_experts=6, shared_expert_intermediate_size=64),
    "qwen35": Qwen3_5TextConfig(**DELTA),
    "qwen35/alike-heads": Qwen3_5TextConfig(**DELTA | {"linear_num_value_heads": 2}, tie_word_embeddings=True),
    "qwen35moe": Qwen3_5MoeTextConfig(**DELTA, **MOE, num_experts=6, shared_expert_intermediate_size=64),
    "deepseek2/glm4-lite": Glm4MoeLiteConfig(
        **SHAPE_OF_LATENTS, **MOE, n_routed_experts=8, num_key_value_heads=4,
    ),
    "deepseek2/youtu": YoutuConfig(**SHAPE_OF_LATENTS, num_key_value_heads=4, embedding_initializer_range=0.2),
    "olmoe": OlmoeConfig(**SHAPE, num_experts=7, num_experts_per_tok=3),
}  # fmt: skip


NEWER = list(CONFIGS_BY_ARCH)[list(CONFIGS_BY_ARCH).index("gpt2") :]


def small_model(arch: str, monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    monkeypatch.setitem(CONFIGS, arch, CONFIGS_BY_ARCH[arch])
    return make(arch)


@pytest.mark.parametrize(
    ("arch", "kind"),
    [
        *(("llama", k) for k in (Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1)),
        ("qwen2", Kind.Q8_0),
        ("qwen3", Kind.Q5_1),
        ("phi3", Kind.Q8_0),
        ("smollm3", Kind.Q8_0),
        ("ernie4_5", Kind.Q8_0),
        ("seed_oss", Kind.Q8_0),
        ("starcoder2", Kind.Q8_0),
        ("arcee", Kind.Q8_0),
        ("olmo", Kind.Q8_0),
        ("chatglm", Kind.Q8_0),
        ("olmo2", Kind.Q8_0),
        ("exaone4", Kind.Q8_0),
        ("glm4", Kind.Q8_0),
        ("granite", Kind.Q8_0),
        ("command-r", Kind.Q8_0),
        ("cohere2", Kind.Q8_0),
        ("stablelm", Kind.Q8_0),
        ("stablelm/own-norms", Kind.Q8_0),
        ("command-r/own-norms", Kind.Q8_0),
        ("hunyuan-dense", Kind.Q8_0),
        ("mistral3", Kind.Q8_0),
        ("gemma", Kind.F16),
        ("gemma2", Kind.Q8_0),
        ("gemma3", Kind.F32),
        ("deepseek2/v2", Kind.F16),
        ("deepseek2/v3", Kind.Q8_0),
        ("glm4moe", Kind.Q8_0),
        ("phi2", Kind.Q8_0),
        *((arch, Kind.Q8_0) for arch in NEWER),
        ("qwen3moe", Kind.Q8_0),
        ("qwen3moe", Kind.F16),
        ("qwen2moe", Kind.Q4_0),
        ("olmoe", Kind.Q5_0),
        ("gpt-oss", Kind.Q8_0),
        ("gpt-oss", Kind.F16),
    ],
)  # fmt: skip
def test_file_equals_directory(arch: str, kind: Kind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(arch, monkeypatch)
    arch = arch.partition("/")[0]
    path = tmp_path / "model.gguf"
    writer = begin(path, arch, model)
    write_tensors(writer, arch, model, kind)
    finish(writer)
    from_file = load_model(path, skip_tokenizer=True)
    from_directory = load_model(save(model, tmp_path / "hf"), skip_tokenizer=True)
    ids = some_ids(40)
    assert torch.equal(logits_of(from_file.decoder, ids), logits_of(from_directory.decoder, ids))
    assert from_file.config.name == "a small model"
    assert (from_file.config.bos_token_id, from_file.config.eos_token_ids) == (1, (2,))


@pytest.mark.parametrize("arch", ["qwen35", "glm4moe"])
def test_layers_that_draft_are_left_out(arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multi-token prediction's, which are counted among the blocks."""
    model = small_model(arch, monkeypatch)
    layers = model.config.num_hidden_layers
    model.config.num_hidden_layers = layers + 1
    writer = begin(tmp_path / "model.gguf", arch, model)
    model.config.num_hidden_layers = layers
    writer.add_nextn_predict_layers(1)
    writer.add_tensor(f"blk.{layers}.nextn.eh_proj.weight", np.zeros((64, 128), dtype=np.float32))
    write_tensors(writer, arch, model, Kind.F32)
    finish(writer)
    decoder = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder
    ids = some_ids(40)
    torch.testing.assert_close(logits_of(decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)


def test_early_files_of_qwen3_next_have_its_projections_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model("qwen3next", monkeypatch)
    whole = {
        index: layer.linear_attn.in_proj_qkvz.weight
        for index, layer in enumerate(model.model.layers)
        if hasattr(layer, "linear_attn")
    }
    writer = begin(tmp_path / "model.gguf", "qwen3next", model)
    add = writer.add_tensor

    def add_whole(name: str, tensor: np.ndarray, **options: object) -> None:
        """In place of what is apart."""
        _, index, kind = name.split(".")[:3] if name.startswith("blk.") else ("", "", "")
        if kind == "attn_qkv":
            add(f"blk.{index}.ssm_in.weight", whole[int(index)].detach().numpy())
        elif kind != "attn_gate":
            add(name, tensor, **options)

    monkeypatch.setattr(writer, "add_tensor", add_whole)
    write_tensors(writer, "qwen3next", model, Kind.F32)
    finish(writer)
    decoder = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder
    ids = some_ids(40)
    torch.testing.assert_close(logits_of(decoder, ids), reference_logits(model, ids), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (None, PoolingConfig()),
        (PoolingType.MEAN, PoolingConfig(methods=("mean",), stated=True)),
        (PoolingType.LAST, PoolingConfig(stated=True)),
        (PoolingType.RANK, PoolingConfig()),
    ],
)
def test_a_file_says_how_it_is_pooled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: PoolingType | None, expected: PoolingConfig
) -> None:
    model = small_model("qwen3", monkeypatch)
    writer = begin(tmp_path / "model.gguf", "qwen3", model)
    if kind is not None:
        writer.add_pooling_type(kind)
    write_tensors(writer, "qwen3", model, Kind.F16)
    finish(writer)
    assert load_model(tmp_path / "model.gguf", skip_tokenizer=True).pooling == expected


def test_rope_freqs_scale_as_llama3_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama", monkeypatch)
    scaled = copy.deepcopy(model.config)
    scaled.rope_parameters = LLAMA3_ROPE
    scaled_model = type(model)(scaled).eval()
    scaled_model.load_state_dict(model.state_dict())
    model.config.rope_parameters["rope_theta"] = LLAMA3_ROPE["rope_theta"]
    plain = type(model)(model.config)

    path = tmp_path / "model.gguf"
    writer = begin(path, "llama", model)
    write_tensors(writer, "llama", model, Kind.F32)
    divisors = plain.model.rotary_emb.inv_freq / scaled_model.model.rotary_emb.inv_freq
    writer.add_tensor("rope_freqs.weight", divisors.numpy().astype(np.float32))
    finish(writer)
    ids = some_ids(200)
    actual = logits_of(load_model(path, skip_tokenizer=True).decoder, ids)
    torch.testing.assert_close(actual, reference_logits(scaled_model, ids), rtol=2e-4, atol=2e-4)


def test_header_equals_that_of_the_gguf_package(smollm2_path: Path) -> None:
    ours, theirs = GGUFFile(smollm2_path), GGUFReader(smollm2_path)
    fields = {k: v.contents() for k, v in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == fields
    for tensor in theirs.tensors:
        info = ours.tensors[tensor.name]
        assert (info.shape, info.kind, info.offset) == (
            tuple(reversed(tensor.shape.tolist())),
            tensor.tensor_type,
            tensor.data_offset,
        )


def test_unknown_architectures_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    finish(GGUFWriter(path, "mamba"))
    with pytest.raises(ModelError, match="architecture mamba, which is not known here; known: llama, qwen2, qwen3"):
        load_model(path)
    writer = GGUFWriter(path, "qwen2")
    writer.add_expert_count(8)
    finish(writer)
    with pytest.raises(ModelError, match="architecture qwen2 with experts"):
        load_model(path)


def test_files_that_are_cut_short_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama", monkeypatch)
    path = tmp_path / "model.gguf"
    writer = begin(path, "llama", model)
    write_tensors(writer, "llama", model, Kind.F32)
    finish(writer)
    content = path.read_bytes()
    path.write_bytes(content[:-100])
    with pytest.raises(ModelError, match=f"expected {len(content)} bytes, found {len(content) - 100}"):
        load_model(path)
    path.write_bytes(content[:200])
    with pytest.raises(ModelError, match="header is damaged or cut short"):
        load_model(path)
    path.write_bytes(b"PK" + content[2:])
    with pytest.raises(ModelError, match="expected a GGUF file"):
        load_model(path)
