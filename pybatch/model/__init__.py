"""Models: from files on disk to logits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybatch.lazy import lazy_names

if TYPE_CHECKING:
    from pybatch.model.batch import ForwardBatch, LayerCache
    from pybatch.model.config import ModelConfig
    from pybatch.model.decoder import Decoder
    from pybatch.model.errors import ModelError
    from pybatch.model.loader import LoadedModel, load_model
    from pybatch.model.text.tokenizer import Tokenizer

__all__ = [
    "Decoder",
    "ForwardBatch",
    "LayerCache",
    "LoadedModel",
    "ModelConfig",
    "ModelError",
    "Tokenizer",
    "load_model",
]

# Where a model's files are can be said without torch.
__getattr__, __dir__ = lazy_names(
    globals(),
    {
        "Decoder": "pybatch.model.decoder",
        "ForwardBatch": "pybatch.model.batch",
        "LayerCache": "pybatch.model.batch",
        "LoadedModel": "pybatch.model.loader",
        "ModelConfig": "pybatch.model.config",
        "ModelError": "pybatch.model.errors",
        "Tokenizer": "pybatch.model.text.tokenizer",
        "load_model": "pybatch.model.loader",
    },
)
