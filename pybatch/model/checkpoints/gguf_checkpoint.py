"""A model in a GGUF file: its config from the metadata, its tensors under their Hugging Face names."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
from gguf import GGMLQuantizationType, PoolingType

from pybatch.model.checkpoints.gguf_ends import end_of_generation_ids
from pybatch.model.checkpoints.gguf_file import GGUFFile
from pybatch.model.checkpoints.gguf_layout import layouts, numbers
from pybatch.model.checkpoints.gguf_parts import GGUFModel
from pybatch.model.checkpoints.gguf_source import LONG, SHORT, GGUFSource
from pybatch.model.checkpoints.requantized import BECOMES
from pybatch.model.config import MAX_VOCAB, AttentionConfig, LayerConfig, MLPConfig, ModelConfig, without_unknown_ids
from pybatch.model.errors import ModelError, one_line
from pybatch.model.families import BY_GGUF, FAMILIES
from pybatch.model.families.family import Family
from pybatch.model.families.read import config_of, unknown_architecture
from pybatch.model.fields import Fields, short
from pybatch.model.pooling import CLS, LAST, MEAN, PoolingConfig
from pybatch.model.rows import BlockRows, Rows, stacked

MAX_NAME = 200  # characters
POOLINGS: dict[int, str] = {PoolingType.MEAN: MEAN, PoolingType.CLS: CLS, PoolingType.LAST: LAST}
# Of names in a layer, where the converter has others: their ends, and what they become.
OTHER_ENDS = {
    ".sinks": ".sinks.weight",
    ".dt_bias": ".dt_proj.bias",
    ".e_score_correction_bias": ".e_score_correction.bias",
    ".layer_scalar": ".layer_scalar.weight",
    ".experts.gate_up_proj": ".experts.gate_up_proj.weight",
    ".router.scale": ".router.proj.scale",
    ".router.per_expert_scale": ".experts.down_proj.scale",
}
WITH_WINDOWS = {"llama": "mistral", "olmo2": "olmo3"}  # families that have another's name in files
SUFFIXES = (".weight", ".bias", ".scale")

logger = logging.getLogger(__name__)


class GGUFCheckpoint:
    quantized = False  # quantization="gguf" keeps its bits

    def __init__(self, path: Path) -> None:
        self.file = GGUFModel(path)
        self.generation_config: dict[str, Any] = {}
        family = _family(self.file)
        self.config = without_unknown_ids(_config(self.file, family))
        assert family.gguf is not None
        arch = family.gguf.architecture
        self.pooling = _pooling(self.file, arch)
        number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
        self._names = gguf.get_tensor_name_map(number, self.config.num_layers)
        family = FAMILIES[self.config.family]
        self._layouts = layouts(family, self.config)
        self._numbers = numbers(family, self.file.metadata, self.config.num_layers)
        self._requantized: dict[str, GGMLQuantizationType] = {}  # the block types of matrices that do not keep them
        self._read = {"rope_freqs.weight", SHORT, LONG}

    def __contains__(self, name: str) -> bool:
        return name in self._numbers or all(part in self.file.tensors for part in self._parts(name))

    def __getitem__(self, name: str) -> Rows:
        if name in self._numbers:
            return self._numbers[name]
        parts = self._parts(name)
        self._read.update(parts)
        rows = stacked([self.file.rows(part) for part in parts])
        if self._is_laid_out(name):
            rows = self._layouts[name].view(rows)
        kind = self.file.tensors[parts[0]].kind
        if isinstance(rows, BlockRows) and rows.block_type != kind.name:
            self._requantized[name] = kind
        return rows

    def _parts(self, name: str) -> list[str]:
        """The file's names of what it has in the tensor's place."""
        return [self._gguf_name(part) for part in (self._layouts[name].parts if self._is_laid_out(name) else (name,))]

    def _is_laid_out(self, name: str) -> bool:
        """Otherwise than Hugging Face's; of early files some are not."""
        return name in self._layouts and self._gguf_name(self._layouts[name].parts[0]) in self.file.tensors

    def unread(self) -> list[str]:
        """The tensors that have not been read."""
        return sorted(self.file.tensors.keys() - self._read)

    def files(self) -> list[Path]:
        return self.file.files()

    def tell(self) -> None:
        """Logs which of the matrices that were read do not run from their own bits."""
        others = [f"{count} of {kind.name}" for kind, count in sorted(Counter(self._requantized.values()).items())]
        if others:
            logger.warning(
                "%s: no kernel multiplies these matrices as they are, so they become %s: %s",
                self.config.name, BECOMES.name, ", ".join(others),
            )  # fmt: skip

    def _gguf_name(self, name: str) -> str:
        for end, other in OTHER_ENDS.items():
            if name.endswith(end):
                name = name.removesuffix(end) + other
        return self._names.get_name(name, SUFFIXES) or name


def _family(file: GGUFFile) -> Family:
    """Files of Mistral and Mixtral call themselves llama too."""
    arch = file.metadata.get("general.architecture")
    family = BY_GGUF.get(arch) if isinstance(arch, str) else None
    if family is None:
        raise unknown_architecture(short(arch).strip("'"), str(file.path), BY_GGUF)
    experts = file.metadata.get(f"{arch}.expert_count")
    if experts and family.model_type == "llama":
        family = FAMILIES["mixtral"]
    if experts and family.gguf is not None and "expert_count" not in family.gguf.keys.values():
        raise unknown_architecture(f"{arch} with experts", str(file.path), BY_GGUF)
    return family


def _pooling(file: GGUFFile, arch: str) -> PoolingConfig:
    """The last token's state where the file names no pooling, or a ranking, whose head is not read."""
    kind = Fields(file.metadata, str(file.path)).integer(f"{arch}.pooling_type", 0, low=0, high=1 << 31)
    method = POOLINGS.get(kind)
    return PoolingConfig() if method is None else PoolingConfig(methods=(method,), stated=True)


def _config(file: GGUFFile, family: Family) -> ModelConfig:
    metadata, tensors, where = file.metadata, file.tensors, str(file.path)
    assert family.gguf is not None
    source = GGUFSource(file, family.gguf)
    if family.model_type in WITH_WINDOWS and source.window():
        family = FAMILIES[WITH_WINDOWS[family.model_type]]
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{where}: expected the tensor token_embd.weight, which is not there")
    vocab = tensors["token_embd.weight"].shape[0]
    if vocab > MAX_VOCAB:
        raise ModelError(f"{where}: token_embd.weight: expected at most {MAX_VOCAB} tokens, got {vocab}")
    general = Fields(metadata, where)
    bos = general.ids("tokenizer.ggml.bos_token_id")
    config = config_of(
        family,
        source,
        name=one_line(general.text("general.name", file.path.stem)[:MAX_NAME]),
        vocab_size=vocab,
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=end_of_generation_ids(metadata, where),
    )
    source.check_unread(config.attentions[0].own_head_dim)
    return replace(
        config,
        norm=replace(config.norm, offset=0.0),  # which the weights have in them
        layers=tuple(_with_biases(layer, f"blk.{index}", file) for index, layer in enumerate(config.layers)),
    )


def _with_biases(layer: LayerConfig, name: str, file: GGUFFile) -> LayerConfig:
    """Which projections have biases, the tensors alone tell."""
    if not isinstance(layer.mixer, AttentionConfig):
        return layer
    has = file.tensors.__contains__
    bias = has(f"{name}.attn_q.bias") or has(f"{name}.attn_qkv.bias")
    layer = layer.with_attention(bias=bias, out_bias=has(f"{name}.attn_output.bias"))
    if not isinstance(layer.mlp, MLPConfig):
        return layer
    return replace(layer, mlp=replace(layer.mlp, bias=has(f"{name}.ffn_up.bias")))
