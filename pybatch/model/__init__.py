"""Models: from files on disk to logits."""

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
