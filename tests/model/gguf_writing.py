"""Writes a model of transformers as a GGUF file, as llama.cpp's converter lays it out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, quants
from transformers import PreTrainedModel

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    prefix = ""
    if name.startswith("model.layers."):
        _, _, layer, name = name.split(".", 3)
        prefix = f"blk.{layer}."
    stem, kind = name.rsplit(".", 1)
    return f"{prefix}{NAMES[stem]}.{kind}"


def turned(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of a head in the order 0, half, 1, half + 1, ..."""
    rows = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return np.ascontiguousarray(rows.swapaxes(1, 2).reshape(weight.shape))


def begin(path: Path, arch: str, model: PreTrainedModel) -> GGUFWriter:
    config = model.config
    writer = GGUFWriter(path, arch)
    writer.add_name("a small model")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    return writer


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_tensors(writer: GGUFWriter, arch: str, model: PreTrainedModel, kind: GGMLQuantizationType) -> None:
    """Matrices as `kind`, vectors as float32. The model's own weights become what the file holds, rounded."""
    config = model.config
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads} if arch == "llama" else {}
    for name, parameter in model.named_parameters():
        data = parameter.detach().numpy()
        projection = name.split(".")[-2]
        matrix_kind = kind if data.ndim == 2 else GGMLQuantizationType.F32
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(quants.dequantize(quants.quantize(data, matrix_kind), matrix_kind)))
        if projection in heads:
            data = turned(data, heads[projection])
        raw_dtype = None if matrix_kind in (GGMLQuantizationType.F32, GGMLQuantizationType.F16) else matrix_kind
        writer.add_tensor(gguf_name(name), quants.quantize(data, matrix_kind), raw_dtype=raw_dtype)
