"""Writes a model of transformers as a GGUF file, as llama.cpp's converter lays it out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH_NAMES,
    ExpertGatingFuncType,
    GGMLQuantizationType,
    GGUFWriter,
    RopeScalingType,
    get_tensor_name_map,
    quants,
)
from gguf_blocks import other_blocks, random_blocks
from transformers import PreTrainedConfig, PreTrainedModel

from pybatch import ops


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a head in the order 0, half, 1, half + 1, ..."""
    rows = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


TURNED = (
    "llama",
    "smollm3",
    "arcee",
    "mistral3",
    "olmo",
    "granite",
    "granitemoe",
)  # architectures that have rows of q and k so


LAYER_NORM_EPS = ("layer_norm_eps", "norm_epsilon", "layer_norm_epsilon", "norm_eps")
DELTA_NETS = ("qwen3next", "qwen35")  # beginnings of architectures
MORE_BY_ONE = ("gemma", "gemma2", "gemma3", "nemotron", "qwen3next", "qwen35", "qwen35moe")  # weights of norms


def mlp_width(arch: str, config: PreTrainedConfig) -> int | None:
    if arch in ("gpt2", "falcon"):
        return 4 * config.hidden_size
    if config.model_type == "granitemoehybrid" and arch == "granite":
        return config.shared_intermediate_size
    return getattr(config, "intermediate_size", None)


def num_kv_heads(arch: str, config: PreTrainedConfig) -> int | None:
    """None: the file does not say."""
    if arch == "falcon":
        return config.num_kv_heads if config.new_decoder_architecture or not config.multi_query else 1
    return 1 if arch == "deepseek2" else getattr(config, "num_key_value_heads", None)


def begin(path: Path, arch: str, model: PreTrainedModel, **options: Any) -> GGUFWriter:
    config = model.config
    writer = GGUFWriter(path, arch, **options)
    writer.add_name("a small model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    if width := mlp_width(arch, config):
        writer.add_feed_forward_length(width)
    writer.add_head_count(config.num_attention_heads)
    if kv_heads := num_kv_heads(arch, config):
        hybrid = config.model_type == "granitemoehybrid"
        writer.add_head_count_kv([kv_heads] * config.num_hidden_layers if hybrid else kv_heads)
    layer_norm = [getattr(config, name) for name in LAYER_NORM_EPS if hasattr(config, name)]
    if layer_norm or arch == "olmo":
        writer.add_layer_norm_eps(layer_norm[0] if layer_norm else 1e-5)
    else:
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    rope = getattr(config, "rope_parameters", {})
    rope = rope.get("full_attention", rope)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
    if rope.get("rope_type") == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if arch.startswith("gemma") and getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if getattr(config, "attn_logit_softcapping", None):
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if experts := getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    for name in ("moe_intermediate_size", "shared_expert_intermediate_size"):
        if width := getattr(config, name, 0):
            add = (
                writer.add_expert_feed_forward_length
                if name.startswith("moe")
                else writer.add_expert_shared_feed_forward_length
            )
            add(width)
    if arch == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if arch in ("deepseek2", "glm4moe"):
        begin_sigmoids(writer, config)
    if arch == "deepseek2":
        begin_latents(writer, config)
    elif getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if "partial_rotary_factor" in rope:
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    if "llama_4_scaling_beta" in rope:
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope.get("rope_type") == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if "long_factor" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        writer.add_rope_scaling_attn_factors(
            (1 + math.log(rope["factor"]) / math.log(rope["original_max_position_embeddings"])) ** 0.5
        )
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
    if hasattr(config, "logit_scale"):
        writer.add_logit_scale(config.logit_scale)
    if hasattr(config, "residual_multiplier"):
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
        writer.add_rope_scaling_finetuned(getattr(config, "position_embedding_type", "rope") == "rope")
    if shared := getattr(config, "shared_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(shared)
    if arch == "gptneox":
        writer.add_parallel_residual(config.use_parallel_residual)
    if arch in ("olmo2", "exaone4") and hasattr(config, "layer_types"):
        writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    if arch.startswith(DELTA_NETS):
        begin_delta_nets(writer, config)
    if config.model_type == "granitemoehybrid":  # of Mamba, which no layer is
        writer.add_ssm_conv_kernel(config.mamba_d_conv)
        writer.add_ssm_state_size(config.mamba_d_state)
        writer.add_ssm_group_count(config.mamba_n_groups)
        writer.add_ssm_inner_size(config.mamba_expand * config.hidden_size)
        writer.add_ssm_time_step_rank(config.mamba_n_heads)
    if arch == "apertus":
        activations = [layer.mlp.act_fn for layer in model.model.layers]
        writer.add_xielu_alpha_p([each.alpha_p.item() for each in activations])
        writer.add_xielu_alpha_n([each.alpha_n.item() for each in activations])
        writer.add_xielu_beta([each.beta.item() for each in activations])
        writer.add_xielu_eps([each.eps.item() for each in activations])
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    return writer


def begin_latents(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_key_length(config.kv_lora_rank + config.qk_rope_head_dim)
    writer.add_value_length(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    if config.q_lora_rank is not None:
        writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    if log_multiplier := config.rope_parameters.get("mscale_all_dim"):
        writer.add_rope_scaling_yarn_log_mul(0.1 * log_multiplier)


def begin_delta_nets(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)
    writer.add_full_attention_interval(config.layer_types.index("full_attention") + 1)
    writer.add_rope_dimension_sections([11, 11, 10, 0])


def begin_sigmoids(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Of experts that DeepSeek-V3's way of choosing, or V2's, is for."""
    v2 = config.model_type == "deepseek_v2"
    if not hasattr(config, "n_routed_experts"):  # Youtu
        writer.add_leading_dense_block_count(config.num_hidden_layers)
        return
    if not v2:
        writer.add_expert_count(config.n_routed_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    writer.add_leading_dense_block_count(getattr(config, "first_k_dense_replace", 1))
    writer.add_expert_shared_count(config.n_shared_experts)
    writer.add_expert_weights_scale(config.routed_scaling_factor)
    writer.add_expert_weights_norm(not v2 and config.norm_topk_prob)
    writer.add_expert_gating_func(ExpertGatingFuncType.SOFTMAX if v2 else ExpertGatingFuncType.SIGMOID)
    if config.n_group:
        writer.add_expert_group_count(config.n_group)
        writer.add_expert_group_used_count(config.topk_group)


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


Part = tuple[str, torch.Tensor, Any]  # a name, a parameter or a view of one, and what of it is meant, as an index


def parameters(model: PreTrainedModel, arch: str) -> Iterator[Part]:
    """A model's own, under the names that the converter has for them: gates and ups of experts apart."""
    config, kind = model.config, model.config.model_type
    by_input = kind == "gpt_oss"
    norms: dict[str, list[torch.Tensor]] = {}
    for name_there, parameter in model.named_parameters():
        name = name_there.replace("moe.router.", "moe.router.layer.").replace("block_sparse_moe.experts", "mlp.experts")
        path, _, last = name.rpartition(".")
        if ".norms." in name:  # of each head: one below the other
            norms.setdefault(name.partition(".norms.")[0], []).append(parameter)
        elif path.endswith("kv_b_proj"):  # keys transposed, and values
            of_heads = parameter.view(config.num_attention_heads, -1, config.kv_lora_rank)
            keys, values = of_heads.split([config.qk_nope_head_dim, config.v_head_dim], 1)
            yield name.replace("kv_b_proj", "k_b_proj"), keys.transpose(1, 2), ...
            yield name.replace("kv_b_proj", "v_b_proj"), values, ...
        elif last == "sinks":
            yield f"{name}.weight", parameter, ...
        elif by_input and ".experts." in name:  # gates and ups by turns, and a row for each input
            suffix = ".bias" if last.endswith("_bias") else ".weight"
            rows = parameter if suffix == ".bias" else parameter.transpose(1, 2)
            if last.startswith("gate_up"):
                yield f"{path}.gate_proj{suffix}", rows[:, ::2], ...
                yield f"{path}.up_proj{suffix}", rows[:, 1::2], ...
            else:
                yield f"{path}.down_proj{suffix}", rows, ...
        elif last == "gate_up_proj" and kind != "gemma4_text":
            for part, half in zip(("gate_proj", "up_proj"), parameter.chunk(2, 1), strict=True):
                yield f"{path}.{part}.weight", half, ...
        elif path.endswith("shared_mlp.input_linear"):
            mlp = path.replace("shared_mlp.input_linear", "mlp" if arch == "granite" else "mlp.shared_expert")
            for part, half in zip(("gate_proj", "up_proj"), parameter.chunk(2), strict=True):
                yield f"{mlp}.{part}.weight", half, ...
        elif path.endswith("shared_mlp.output_linear") and arch == "granite":
            yield name.replace("shared_mlp.output_linear", "mlp.down_proj"), parameter, ...
        elif path.endswith(("c_attn", "c_proj", "c_fc")) and kind == "gpt2" and last == "weight":
            yield name, parameter.t(), ...
        elif path.endswith("query_key_value"):
            yield name, parameter, heads_apart(config, num_kv_heads(arch, config), len(parameter))
        elif ".linear_attn." in name:
            yield from of_delta_net(name, parameter, config, arch)
        elif ".act_fn." not in name:
            yield (f"{name}.weight" if parameter.dim() == 3 else name), parameter, ...
    for name, each in norms.items():
        yield f"{name}.weight", torch.stack(each), ...
    for name, buffer in model.named_buffers():
        if name.endswith("layer_scalar"):
            yield f"{name}.weight", buffer, ...
        elif name.endswith("correction_bias"):
            yield f"{name.removesuffix('_bias')}.bias", buffer, ...


def heads_apart(config: PreTrainedConfig, kv_heads: int | None, rows: int) -> torch.Tensor:
    """The rows of queries, then keys, then values, of a projection that has those of a key-value head together."""
    groups = torch.arange(rows).view(
        kv_heads or config.num_attention_heads, -1, config.hidden_size // config.num_attention_heads
    )
    return torch.cat([groups[:, :-2].flatten(), groups[:, -2].flatten(), groups[:, -1].flatten()])


def of_delta_net(name: str, parameter: torch.Tensor, config: PreTrainedConfig, arch: str) -> Iterator[Part]:
    """qwen35 has the first value head of each key head, then the second of each; qwen3next has those of a key head
    together, as transformers has, but queries, keys, values and gates apart."""
    keys, dim = config.linear_num_key_heads * config.linear_key_head_dim, config.linear_value_head_dim
    heads = torch.arange(config.linear_num_value_heads).view(config.linear_num_key_heads, -1)
    tiled = (heads.t() if arch != "qwen3next" else heads).flatten()
    values = (tiled[:, None] * dim + torch.arange(dim)).flatten()
    behind_keys = torch.cat([torch.arange(2 * keys), 2 * keys + values])
    match name.split(".linear_attn.")[1]:
        case "dt_bias":
            yield name.replace("dt_bias", "dt_proj.bias"), parameter, tiled
        case "A_log" | "in_proj_a.weight" | "in_proj_b.weight":
            yield name, parameter, tiled
        case "in_proj_z.weight":
            yield name, parameter, values
        case "in_proj_qkv.weight":
            yield name, parameter, behind_keys
        case "conv1d.weight":
            yield name, parameter[:, 0], behind_keys
        case "out_proj.weight":
            yield name, parameter, (slice(None), values)
        case "in_proj_qkvz.weight":
            groups = torch.arange(len(parameter)).view(config.linear_num_key_heads, -1)
            of_values = len(values) // config.linear_num_key_heads
            parts = groups.split([config.linear_key_head_dim] * 2 + [of_values] * 2, 1)
            yield name.replace("qkvz", "qkv"), parameter, torch.cat([part.flatten() for part in parts[:3]])
            yield name.replace("qkvz", "z"), parameter, parts[3].flatten()
        case _:
            yield name, parameter, ...


NORM = ("norm.weight", "layernorm.weight")


def settle_rate(parameter: torch.Tensor) -> None:
    """To logarithms that are the same again behind an exponential function and a logarithm, in float32."""
    with torch.no_grad():
        for _ in range(20):
            parameter.copy_(torch.from_numpy(np.exp(parameter.numpy())).log())


def write_tensors(
    writer: GGUFWriter,
    arch: str,
    model: PreTrainedModel,
    kind: GGMLQuantizationType | Callable[[str], GGMLQuantizationType],
) -> None:
    """Matrices as `kind`, or as it says of their name; vectors as float32. The model's own weights become what the file
    holds: themselves, rounded, or for types that gguf.quants does not make, others at random."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if arch in TURNED else {}
    numbers = {name: number for number, name in MODEL_ARCH_NAMES.items()}
    names = get_tensor_name_map(numbers[arch], config.num_hidden_layers)
    for name, parameter, index in parameters(model, arch):
        if name.endswith("A_log"):
            settle_rate(parameter)
        data = parameter.detach()[index].numpy().copy()
        projection = name.split(".")[-2]
        wanted = kind(name) if callable(kind) else kind
        vector = (
            data.ndim == 1
            or projection.endswith("norm")
            or projection in ("gate", "router", "proj", "layer", "wpe", "conv1d")
            or name.endswith(".bias")
        )
        matrix_kind = GGMLQuantizationType.F32 if vector else wanted
        try:
            stored = quants.quantize(data, matrix_kind)
        except NotImplementedError:
            blocks = random_blocks if matrix_kind.name in ops.GGUF_BLOCKS else other_blocks
            rows = blocks(matrix_kind.name, data[..., 0].size, data.shape[-1])
            stored = rows.reshape(*data.shape[:-1], -1)
        with torch.no_grad():
            parameter[index] = torch.from_numpy(quants.dequantize(stored, matrix_kind))
        if arch in MORE_BY_ONE and name.endswith(NORM) and not name.endswith("linear_attn.norm.weight"):
            stored = stored + 1
        if name.endswith("A_log"):
            stored = -np.exp(stored)
        if projection in heads:
            stored = turned(stored, heads[projection])
        raw_dtype = None if matrix_kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16) else matrix_kind
        for end, other in (
            (".router.scale", "ffn_gate_inp.scale"),
            (".router.per_expert_scale", "ffn_down_exps.scale"),
        ):
            if name.endswith(end):
                writer.add_tensor(f"blk.{name.split('.')[2]}.{other}", stored)
                break
        else:
            writer.add_tensor(names.get_name(name, (".weight", ".bias")), stored, raw_dtype=raw_dtype)
