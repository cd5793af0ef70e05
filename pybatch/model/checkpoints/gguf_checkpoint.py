"""A model in a GGUF file: its config from the metadata, its tensors under their Hugging Face names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf

from pybatch.model.checkpoints.gguf_file import GGUFFile
from pybatch.model.config import ModelConfig, merge_ids, unknown_architecture
from pybatch.model.errors import ModelError
from pybatch.model.rope import RopeConfig
from pybatch.model.weights import Rows

# Mistral, SmolLM2 and TinyLlama files call themselves llama.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


class GGUFCheckpoint:
    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        if self.file.metadata.get("split.count", 1) > 1:
            raise ModelError(f"{path} is one of several parts: join them first with llama-gguf-split --merge")
        self.config = _config(self.file)
        arch = self.file.metadata["general.architecture"]
        number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
        self._names = gguf.get_tensor_name_map(number, self.config.num_layers)
        heads = {"attn_q": self.config.num_heads, "attn_k": self.config.num_kv_heads}
        self._turned_heads = heads if arch == "llama" else {}

    def __contains__(self, name: str) -> bool:
        return self._gguf_name(name) in self.file.tensors

    def __getitem__(self, name: str) -> Rows:
        name = self._gguf_name(name)
        return self.file.rows(name, self._turned_heads.get(name.split(".")[-2]))

    def _gguf_name(self, name: str) -> str:
        return self._names.get_name(name, (".weight", ".bias")) or name


def _config(file: GGUFFile) -> ModelConfig:
    metadata, tensors = file.metadata, file.tensors
    arch = metadata.get("general.architecture", "(none)")
    name = metadata.get("general.name", file.path.stem)
    if arch not in ARCHITECTURES or metadata.get(f"{arch}.expert_count"):
        kind = f"{arch} with experts" if arch in ARCHITECTURES else arch
        raise unknown_architecture(kind, str(file.path), tuple(ARCHITECTURES))

    def get(key: str, *default: Any) -> Any:
        full = f"{arch}.{key}"
        if full not in metadata and not default:
            raise ModelError(f"{file.path}: expected {full} in the metadata")
        return metadata.get(full, *default)

    layers, hidden, heads = get("block_count"), get("embedding_length"), get("attention.head_count")
    head_dim = get("attention.key_length", hidden // heads)
    return ModelConfig(
        name=name,
        architecture=ARCHITECTURES[arch],
        vocab_size=tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=get("attention.head_count_kv", heads),
        head_dim=head_dim,
        norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope=_rope(file, get, head_dim),
        max_position=get("context_length"),
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        sliding_window=(get("attention.sliding_window", 0),) * layers,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_ids=merge_ids(*(metadata.get(f"tokenizer.ggml.{end}_token_id") for end in ("eos", "eot", "eom"))),
    )


def _rope(file: GGUFFile, get: Any, head_dim: int) -> RopeConfig:
    kind, factor = get("rope.scaling.type", "none"), get("rope.scaling.factor", 1.0)
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"{file.path}: rope.scaling.type: expected none, linear or yarn, got {kind!r}")
    divisors: tuple[float, ...] = ()
    if "rope_freqs.weight" in file.tensors:
        divisors = tuple(file.rows("rope_freqs.weight")[:].tolist())
    stretch = get("rope.scaling.attn_factor", 1.0) * (0.1 * math.log(factor) + 1) if kind == "yarn" else 1.0
    return RopeConfig(
        kind="default" if kind == "none" else kind,
        rotary_dim=get("rope.dimension_count", head_dim),
        theta=get("rope.freq_base", 10000.0),
        factor=factor,
        original_max_position=get("rope.scaling.original_context_length", get("context_length")),
        beta_fast=get("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=get("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=stretch,
        frequency_divisors=divisors,
    )
