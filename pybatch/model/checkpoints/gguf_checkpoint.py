"""A model in a GGUF file: its config from the metadata, its tensors under their Hugging Face names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf

from pybatch.model.checkpoints.gguf_ends import end_of_generation_ids
from pybatch.model.checkpoints.gguf_file import FLOATS, GGUFFile
from pybatch.model.config import (
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCAB,
    MAX_WIDTH,
    ModelConfig,
    unknown_architecture,
    without_unknown_ids,
)
from pybatch.model.errors import ModelError, one_line
from pybatch.model.fields import Fields, short
from pybatch.model.rope import MAX_POSITIONS, RopeConfig
from pybatch.model.unread_keys import check_unread_keys
from pybatch.model.weights import Rows

# Mistral, SmolLM2 and TinyLlama files call themselves llama.
ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
MAX_NAME = 200  # characters
READ = frozenset(
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "vocab_size",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.layer_norm_rms_epsilon",
        "attention.sliding_window",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.attn_factor",
        "rope.scaling.original_context_length",
        "rope.scaling.finetuned",
        "rope.scaling.yarn_log_multiplier",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
    ]
)


class GGUFCheckpoint:
    def __init__(self, path: Path) -> None:
        self.file = GGUFFile(path)
        self.generation_config: dict[str, Any] = {}
        if Fields(self.file.metadata, str(path)).integer("split.count", 1, low=0, high=MAX_VOCAB) > 1:
            raise ModelError(f"{path} is one of several parts: join them first with llama-gguf-split --merge")
        self.config = without_unknown_ids(_config(self.file))
        arch = self.file.metadata["general.architecture"]
        number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
        self._names = gguf.get_tensor_name_map(number, self.config.num_layers)
        heads = {"attn_q": self.config.num_heads, "attn_k": self.config.num_kv_heads}
        self._turned_heads = heads if arch == "llama" else {}
        self._read = {"rope_freqs.weight"}

    def __contains__(self, name: str) -> bool:
        return self._gguf_name(name) in self.file.tensors

    def __getitem__(self, name: str) -> Rows:
        name = self._gguf_name(name)
        self._read.add(name)
        return self.file.rows(name, self._turned_heads.get(name.split(".")[-2]))

    def unread(self) -> list[str]:
        """The tensors that have not been read."""
        return sorted(self.file.tensors.keys() - self._read)

    def files(self) -> list[Path]:
        return [self.file.path]

    def _gguf_name(self, name: str) -> str:
        return self._names.get_name(name, (".weight", ".bias")) or name


def _config(file: GGUFFile) -> ModelConfig:
    metadata, tensors = file.metadata, file.tensors
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES or metadata.get(f"{arch}.expert_count"):
        kind = f"{arch} with experts" if arch in list(ARCHITECTURES) else short(arch).strip("'")
        raise unknown_architecture(kind, str(file.path), tuple(ARCHITECTURES))
    general, fields = Fields(metadata, str(file.path)), Fields(metadata, str(file.path), f"{arch}.")

    layers = fields.integer("block_count", high=MAX_LAYERS)
    hidden = fields.integer("embedding_length", high=MAX_WIDTH)
    heads = fields.integer("attention.head_count", high=MAX_HEADS)
    head_dim = fields.integer("attention.key_length", hidden // heads, high=MAX_WIDTH)
    if fields.integer("attention.value_length", head_dim, high=MAX_WIDTH) != head_dim:
        raise ModelError(f"{file.path}: expected attention.value_length to be that of keys, {head_dim}")
    own = {key.removeprefix(f"{arch}."): value for key, value in metadata.items() if key.startswith(f"{arch}.")}
    check_unread_keys(own, READ, head_dim, str(file.path))
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{file.path}: expected the tensor token_embd.weight, which is not there")
    vocab = tensors["token_embd.weight"].shape[0]
    if vocab > MAX_VOCAB:
        raise ModelError(f"{file.path}: token_embd.weight: expected at most {MAX_VOCAB} tokens, got {vocab}")
    context = fields.integer("context_length", high=MAX_POSITIONS)
    bos = general.ids("tokenizer.ggml.bos_token_id")
    return ModelConfig(
        name=one_line(general.text("general.name", file.path.stem)[:MAX_NAME]),
        architecture=ARCHITECTURES[arch],
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length", high=MAX_WIDTH),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads, high=MAX_HEADS),
        head_dim=head_dim,
        norm_eps=fields.number("attention.layer_norm_rms_epsilon", high=1.0),
        rope=_rope(file, fields, arch, head_dim, context),
        max_position=context,
        tie_word_embeddings="output.weight" not in tensors,
        attention_bias="blk.0.attn_q.bias" in tensors,
        attention_out_bias="blk.0.attn_output.bias" in tensors,
        mlp_bias="blk.0.ffn_up.bias" in tensors,
        qk_norm="blk.0.attn_q_norm.weight" in tensors,
        sliding_window=(fields.integer("attention.sliding_window", 0, low=0, high=MAX_POSITIONS),) * layers,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=end_of_generation_ids(metadata, str(file.path)),
    )


def _rope(file: GGUFFile, fields: Fields, arch: str, head_dim: int, context: int) -> RopeConfig:
    """As llama.cpp reads it: a factor without a type is linear, scale_linear is an older name of the factor, a factor
    of 0 is none, and attn_factor counts for every type."""
    kind = fields.text("rope.scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise ModelError(f"{file.path}: rope.scaling.type: expected none, linear or yarn, got {short(kind)}")
    name = "rope.scaling.factor" if "rope.scaling.factor" in fields else "rope.scale_linear"
    factor = 1.0
    if fields.get(name) != 0 and kind != "none":
        factor = fields.number(name, 1.0, high=1e6)
    rotary_dim = fields.integer("rope.dimension_count", head_dim, high=head_dim)
    if arch == "llama" and rotary_dim != head_dim:
        raise ModelError(
            f"{file.path}: rope.dimension_count: expected {head_dim}, the size of a head, got {rotary_dim}"
        )
    stretch = fields.number("rope.scaling.attn_factor", 1.0)
    if kind == "yarn":
        weight = fields.number("rope.scaling.yarn_log_multiplier", 0.0, above=-1.0)
        stretch *= _yarn_scale(factor, 1.0) / (_yarn_scale(factor, weight) if weight else 1.0)
    rope = RopeConfig(
        kind="default" if factor == 1.0 and kind != "yarn" else kind,
        rotary_dim=rotary_dim,
        theta=fields.number("rope.freq_base", 10000.0, above=1.0),
        factor=factor,
        original_max_position=fields.integer("rope.scaling.original_context_length", context, low=0, high=MAX_POSITIONS)
        or context,
        beta_fast=fields.number("rope.scaling.yarn_beta_fast", 32.0),
        beta_slow=fields.number("rope.scaling.yarn_beta_slow", 1.0),
        attention_factor=stretch,
        frequency_divisors=_frequency_divisors(file, rotary_dim),
    )
    rope.check(str(file.path))
    return rope


def _yarn_scale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def _frequency_divisors(file: GGUFFile, rotary_dim: int) -> tuple[float, ...]:
    info = file.tensors.get("rope_freqs.weight")
    if info is None:
        return ()
    divisors = file.rows("rope_freqs.weight")[:].tolist() if info.kind in FLOATS else []
    if info.shape != (rotary_dim // 2,) or not all(math.isfinite(each) and each > 0 for each in divisors):
        raise ModelError(
            f"{file.path}: rope_freqs.weight: expected {rotary_dim // 2} positive numbers as F32, "
            f"got {short(list(info.shape))} as {info.kind.name}"
        )
    return tuple(divisors)
