"""LoRA adapters (Hu et al. 2021) in peft's directories, merged into a checkpoint's matrices as these are read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from pybatch.model.checkpoints.files import read_json
from pybatch.model.checkpoints.formats.matrices import requantized
from pybatch.model.checkpoints.stored import StoredTensors, read_header
from pybatch.model.config import ModelConfig
from pybatch.model.errors import ModelError
from pybatch.model.families import FAMILIES
from pybatch.model.fields import Fields, short
from pybatch.model.role_tensors import Checkpoint
from pybatch.model.rows import BlockRows, Rows, ScaledRows

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TENSOR = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<role>A|B|embedding_A|embedding_B|magnitude_vector)(\.default)?(\.weight)?"
)
# By key of adapter_config.json, the values that ask for nothing besides what is done here.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "fan_in_fan_out": (False, None),
    **dict.fromkeys(("lora_bias", "use_qalora"), (False, None)),
    **dict.fromkeys(
        ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters"), (None, [])
    ),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config"), (None, [])),
}
CHANGES_THE_MODEL = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights


@dataclass(frozen=True, slots=True)
class LowRank:
    """The change of a matrix: left @ right, float64. magnitude: of DoRA (Liu et al. 2024), the norm of each row of the
    matrix with the change."""

    left: Tensor  # [N, r], scaled
    right: Tensor  # [r, K]
    magnitude: Tensor | None = None  # [N, 1]

    def of(self, weight: Tensor, rows: slice) -> Tensor:
        """The weight of these rows with the change, float32."""
        changed = weight.double().addmm_(self.left[rows], self.right)
        if self.magnitude is not None:
            changed *= self.magnitude[rows] / changed.norm(dim=1, keepdim=True)
        return changed.float()


class Adapter:
    """A directory, with all its tensors read. changes: by the names of modules."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._config = Fields(read_json(directory / CONFIG), str(directory / CONFIG))
        self._expect_known()
        if not (directory / WEIGHTS).exists():
            others = ", ".join(path.name for path in sorted(directory.glob("adapter_model.*"))) or "none"
            raise ModelError(f"{directory}: expected {WEIGHTS}, found {others}")
        stored, _ = read_header(directory / WEIGHTS)
        self._tensors = StoredTensors(directory, stored, {})
        modules: dict[str, dict[str, str]] = {}
        for name in stored:
            found = TENSOR.fullmatch(name)
            if found is None:
                raise ModelError(f"{directory / WEIGHTS}: {short(name)} is no tensor of LoRA")
            modules.setdefault(found["module"], {})[found["role"]] = name
        self.changes = {module: self._change(module, names) for module, names in modules.items()}

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, without the files."""
        return {"directory": self.directory, "changes": self.changes}

    @classmethod
    def find(cls, adapter: str | Path) -> Self:
        """A directory, or a name on the Hugging Face hub."""
        from pybatch.model.checkpoints.find import find_adapter

        return cls(find_adapter(adapter))

    def _expect_known(self) -> None:
        config = self._config
        kind = config.text("peft_type", "LORA")
        if kind != "LORA":
            raise ModelError(f"{config.where}: peft_type: expected 'LORA', got {short(kind)}")
        for key, neutral in NEUTRAL.items():
            value = config.get(key)
            if value not in neutral:
                raise ModelError(f"{config.where}: {key} = {short(value)} is not known here")
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.lower().startswith(CHANGES_THE_MODEL):
            raise ModelError(
                f"{config.where}: init_lora_weights = {short(start)} changes the model too, not known here"
            )

    def _change(self, module: str, names: Mapping[str, str]) -> LowRank:
        on_embedding = "embedding_A" in names or "embedding_B" in names
        roles = ("embedding_A", "embedding_B") if on_embedding else ("A", "B")
        for role in roles:
            if role not in names:
                raise ModelError(f"{self.directory / WEIGHTS}: {module} has no lora_{role}")
        a, b = (self._tensors.whole(names[role], shape=(None, None)).double() for role in roles)
        if a.shape[0] != b.shape[1] or not a.shape[0]:
            raise ModelError(
                f"{self.directory / WEIGHTS}: {module}: expected [r, K] and [N, r], "
                f"got {list(a.shape)}, {list(b.shape)}"
            )
        b *= self._scale(module, a.shape[0])
        if ("magnitude_vector" in names) != self._config.flag("use_dora"):
            raise ModelError(f"{self.directory}: {module}: expected lora_magnitude_vector where use_dora is true")
        if on_embedding:
            if "magnitude_vector" in names:
                raise ModelError(f"{self.directory}: {module}: use_dora on an embedding is not known here")
            return LowRank(a.t().contiguous(), b.t().contiguous())
        magnitude = None
        if "magnitude_vector" in names:
            magnitude = self._tensors.whole(names["magnitude_vector"], shape=(b.shape[0],)).double()[:, None]
        return LowRank(b, a, magnitude)

    def _scale(self, module: str, rank: int) -> float:
        """alpha / r, or with use_rslora alpha / sqrt(r) (Kalajdzievski 2023)."""
        alpha = self._config.number("lora_alpha", 8.0, above=-1e30)
        for pattern, value in self._config.mapping("alpha_pattern").items():
            try:
                matches = re.fullmatch(rf"(.*\.)?({pattern})", module)
            except re.error as error:
                raise ModelError(f"{self._config.where}: alpha_pattern: {short(pattern)}: {error}") from None
            if matches:
                if not isinstance(value, int | float) or isinstance(value, bool):
                    raise ModelError(f"{self._config.where}: alpha_pattern: expected numbers, got {short(value)}")
                alpha = float(value)
                break
        return alpha / (math.sqrt(rank) if self._config.flag("use_rslora") else rank)


class MergedRows:
    """A matrix with its change, which is added up row by row."""

    def __init__(self, rows: Rows, change: LowRank) -> None:
        self._rows, self._change = rows, change
        self.shape, self.dtype = rows.shape, rows.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        return self._change.of(self._rows[rows], rows)

    def release(self, rows: slice) -> None:
        self._rows.release(rows)


class MergedCheckpoint:
    """A checkpoint whose matrices have the changes of an adapter. Raises ModelError for one that does not fit it."""

    def __init__(self, base: Checkpoint, adapter: Adapter) -> None:
        self._base, self._adapter = base, adapter
        self.config: ModelConfig = base.config
        self.generation_config, self.pooling = base.generation_config, base.pooling
        self.quantized = base.quantized
        self._changes: dict[str, LowRank] = {}
        self._merged: set[str] = set()
        family = FAMILIES[base.config.family]
        tied = {f"{family.tensor(role)}.weight" for role in ("embedding", "lm_head") if base.config.tie_word_embeddings}
        for module, change in adapter.changes.items():
            theirs = (family.tensor("lm_head"),) if module == "lm_head" else (module, f"model.{module}")
            names = [f"{each}.weight" for each in theirs]
            if tied.intersection(names):
                raise ModelError(f"{adapter.directory}: changes {module}, whose weights are tied in {base.config.name}")
            name = next((each for each in names if each in base), None)
            if name is None:
                raise ModelError(f"{adapter.directory}: changes {module}, which {base.config.name} has not")
            expected = (change.left.shape[0], change.right.shape[1])
            if tuple(base[name].shape) != expected:
                raise ModelError(
                    f"{adapter.directory}: {module}: is for a matrix of {list(expected)}, "
                    f"and {base.config.name} has one of {list(base[name].shape)}"
                )
            self._changes[name] = change

    def __contains__(self, name: str) -> bool:
        return name in self._base

    def __getitem__(self, name: str) -> Rows:
        rows, change = self._base[name], self._changes.get(name)
        if change is None:
            return rows
        self._merged.add(name)
        merged = MergedRows(rows, change)
        if isinstance(rows, BlockRows | ScaledRows):  # they can no longer be kept as they are
            return requantized(merged, "the changes of an adapter", f"{self._adapter.directory}: {name}")
        return merged

    def unread(self) -> list[str]:
        if left := sorted(self._changes.keys() - self._merged):
            raise ModelError(f"{self._adapter.directory}: changes {left[0]}, which is not run here")
        return self._base.unread()

    def tell(self) -> None:
        self._base.tell()

    def files(self) -> list[Path]:
        return [*self._base.files(), *(self._adapter.directory / name for name in (CONFIG, WEIGHTS))]
