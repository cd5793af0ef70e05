"""A Hugging Face directory: config.json and safetensors, in one file or in shards."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pybatch.model.checkpoints.files import read_json
from pybatch.model.checkpoints.formats import FILES, open_format, quantization_of, take_quantization
from pybatch.model.checkpoints.formats.kept import Kept
from pybatch.model.checkpoints.formats.matrices import ChannelRows, requantized
from pybatch.model.checkpoints.sentence_transformers import read_pooling
from pybatch.model.checkpoints.stored import Stored, StoredTensors, read_header
from pybatch.model.config import ModelConfig, without_unknown_ids
from pybatch.model.errors import ModelError, one_line
from pybatch.model.families import FAMILIES
from pybatch.model.families.read import config_from_hf
from pybatch.model.fields import short
from pybatch.model.rows import Rows

logger = logging.getLogger(__name__)

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
NO_PARTS = re.compile(r"(consolidated|optimizer|adapter|training)", re.IGNORECASE)  # of a Hugging Face model
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
CHUNK = 4096  # rows compared at a time
# Rotary tables and causal masks of old checkpoints, and scales of activations and caches, which have their own here.
UNNEEDED = re.compile(
    r"rotary_emb\.inv_freq$|\.(attn|attention)\.(masked_)?bias$|\.(weight_format|(input|output|activation|[qkv])_(global_)?(scale|scale_ub|zero_point))$"
)


class SafetensorsCheckpoint:
    """Opens a directory; tensors are mapped when asked for and unmapped when dropped.

    Weights come from model.safetensors, or from the shards that model.safetensors.index.json names; without either,
    from the one file or the one whole set of shards that there is. Other files in the directory are no part of the
    model. A model with tied embeddings may store either of the two tensors; where it stores both and they differ, both
    count, as in transformers. Quantised matrices come under the names of their weights (see formats).

    own_float8: whether float8 matrices keep their bits, which kernels then widen, as on GPUs; as blocks of Q8_0 CPUs
    have their dot products in int8.
    """

    def __init__(self, directory: Path, *, own_float8: bool = False) -> None:
        self.directory, self.own_float8 = directory, own_float8
        self.generation_config: dict[str, Any] = read_json(directory / "generation_config.json")
        self.pooling = read_pooling(directory)
        name = one_line(directory.name or directory.resolve().name)
        fields = read_json(directory / "config.json")
        quantization = take_quantization(fields, directory)
        config = config_from_hf(fields, self.generation_config, name=name)
        self.tensors = self._tensors()
        quantization = quantization or quantization_of(self.tensors, name)
        family = FAMILIES[config.family]
        self._embedding, self._head = (f"{family.tensor(role)}.weight" for role in ("embedding", "lm_head"))
        config = self._as_causal_lm(config)
        self.format = open_format(quantization, self.tensors, name) if quantization else None
        self.quantized = self.format is not None
        self.kept = Kept(name, str(quantization.get("quant_method", "bitsandbytes")) if quantization else "")
        if config.tie_word_embeddings and not self._is_tied():
            config = replace(config, tie_word_embeddings=False)
        self.config = without_unknown_ids(config)

    def __contains__(self, name: str) -> bool:
        return self._quantized(name) is not None or name in self.tensors

    def __getitem__(self, name: str) -> Rows:
        module = self._quantized(name)
        if self.format is None or module is None:
            return self.tensors.rows(name)
        rows = self.format.matrix(module)
        if not self.own_float8 and isinstance(rows, ChannelRows) and rows.codes.dtype != torch.int8:
            rows = requantized(rows, "float8 weights", f"{self.directory}: {module}")
        self.kept.note(module, rows)
        return rows

    def tell(self) -> None:
        self.kept.tell()

    def unread(self) -> list[str]:
        """The tensors that have not been read."""
        tied = {self._head} if self.config.tie_word_embeddings else set()
        names = self.tensors.keys() - self.tensors.read - tied
        return sorted(name for name in names if not UNNEEDED.search(name))

    def files(self) -> list[Path]:
        paths = {stored.path for stored in self.tensors.values()}
        about = [self.directory / name for name in FILES] if self.quantized else []
        return sorted(paths.union(path for path in about if path.exists()))

    def _quantized(self, name: str) -> str | None:
        """The module whose weight this is, if it is quantised."""
        module = name.removesuffix(".weight")
        return module if self.format is not None and self.format.holds(module) else None

    def _tensors(self) -> StoredTensors:
        adapters = [name for name in ADAPTERS if (self.directory / name).exists()]
        if adapters:
            raise ModelError(
                f"{self.directory}: {adapters[0]} is of an adapter, which would be left out here: merge it into the "
                "model (merge_and_unload in peft), or move it elsewhere to run the model without it"
            )
        paths = self._paths()
        stored: dict[str, Stored] = {}
        metadata: dict[str, str] = {}
        for path in paths:
            tensors, texts = read_header(path)
            stored.update(tensors)
            metadata.update(texts)
        if (self.directory / INDEX).exists():
            wanted = self._index()
            missing = sorted(name for name, path in wanted.items() if name not in stored or stored[name].path != path)
            if missing:
                raise ModelError(
                    f"{self.directory}: {INDEX} says that {wanted[missing[0]].name} holds {short(missing[0])}, "
                    "but it does not"
                )
            stored = {name: stored[name] for name in wanted}
        stored = {_as_text_model(name): found for name, found in stored.items()}
        return StoredTensors(self.directory, stored, {_as_text_model(name): text for name, text in metadata.items()})

    def _paths(self) -> list[Path]:
        """The files with the weights."""
        whole = self.directory / WHOLE
        if (self.directory / INDEX).exists():
            paths = sorted(set(self._index().values()))
            if whole.exists() and whole not in paths:
                raise ModelError(f"{self.directory}: {WHOLE} is there and {INDEX} names other files: expected only one")
            absent = [path.name for path in paths if not path.exists()]
            if absent:
                raise ModelError(f"{self.directory}: {INDEX} names {absent[0]}, which is not there")
            return paths
        if whole.exists():
            return [whole]
        found = sorted(self.directory.glob("*.safetensors"))
        files = [path for path in found if not NO_PARTS.match(path.name)]
        if not files:
            others = found + sorted(self.directory.glob("*.bin")) + sorted(self.directory.glob("*.pt*"))
            instead = f", only {others[0].name}" if others else ""
            raise ModelError(f"{self.directory}: expected *.safetensors beside config.json, found none{instead}")
        if len(files) > 1 and not _is_one_set(files):
            raise ModelError(
                f"{self.directory}: expected {WHOLE} or {INDEX}, or one file, and cannot tell which of these are the "
                f"model: {short(', '.join(path.name for path in files), 200)}"
            )
        return files

    def _index(self) -> dict[str, Path]:
        shards = read_json(self.directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelError(f"{self.directory / INDEX}: expected weight_map, an object of tensors and their files")
        for shard in shards.values():
            if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard:
                raise ModelError(f"{self.directory / INDEX}: weight_map: expected names of files, got {short(shard)}")
        return {name: self.directory / shard for name, shard in shards.items()}

    def _as_causal_lm(self, config: ModelConfig) -> ModelConfig:
        """Gives the tensors of a model that was saved without a projection to the vocabulary, as an encoder or with a
        head of its own, their names in one that has it."""
        tensors, embedding, head = self.tensors, self._embedding, self._head
        prefix, _, bare = embedding.partition(".")
        is_encoder = embedding not in tensors and bare in tensors
        if is_encoder:
            tensors.put_below(prefix)
        if head in tensors or not (is_encoder or config.num_labels):
            return config
        generates = config.tie_word_embeddings and not config.num_labels
        return replace(config, tie_word_embeddings=True, generates=generates)

    def _is_tied(self) -> bool:
        """Whether embedding and head are one; where only the head is stored, it is the embedding too."""
        if self._head not in self:
            return True
        if self._embedding not in self and self._head in self.tensors:
            self.tensors.alias(self._embedding, self._head)
            return True
        embedding, head = self[self._embedding], self[self._head]
        equal = embedding.shape == head.shape and _equal(embedding, head)
        if not equal:
            logger.warning(
                "%s: config.json says that embeddings are tied, but %s and %s differ: both are used",
                self.directory, self._embedding, self._head,
            )  # fmt: skip
        return equal


def _as_text_model(name: str) -> str:
    """A tensor of the language model in one that sees or hears too, as the model without the other parts has it."""
    if name.startswith("model.language_model."):
        return name.replace("language_model.", "", 1)
    return name.removeprefix("language_model.")


def _equal(a: Rows, b: Rows) -> bool:
    for first in range(0, a.shape[0], CHUNK):
        rows = slice(first, min(first + CHUNK, a.shape[0]))
        if not torch.equal(a[rows].float(), b[rows].float()):
            return False
        a.release(rows)
        b.release(rows)
    return True


def _is_one_set(files: list[Path]) -> bool:
    """Whether these are all the shards of one model."""
    shards = [SHARD.fullmatch(path.name) for path in files]
    names = {(shard[1], int(shard[3])) for shard in shards if shard}
    numbers = {int(shard[2]) for shard in shards if shard}
    return all(shards) and len(names) == 1 and numbers == set(range(1, names.pop()[1] + 1))
