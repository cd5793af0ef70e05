"""From the pooled states of a prompt to what its request asks for: an embedding or a score."""

from __future__ import annotations

from functools import cached_property
from typing import cast

import numpy as np
import torch

from pybatch import ops
from pybatch.engine.pooled import Vector
from pybatch.engine.pooling_params import Pooling, PoolingParams
from pybatch.model.decoder import Decoder
from pybatch.model.layers import DenseLinear, Packed
from pybatch.model.lora_linear import without_adapters
from pybatch.model.pooling import LAST, PoolingConfig


class Pooler:
    """For one model. labels: the token ids for yes and no, by which a model without a head of its own scores."""

    def __init__(self, decoder: Decoder, config: PoolingConfig, labels: tuple[int, int] | None = None) -> None:
        self._decoder, self._config, self._labels = decoder, config, labels

    def pooling(self, params: PoolingParams) -> Pooling:
        """Raises ValueError for what the model cannot do."""
        if params.task == "score":
            self._expect_scores(params)
            return Pooling(methods=(LAST,), normalize=False, scores=True)
        config = self._config
        width = len(config.methods) * self._decoder.config.hidden_size
        if params.dimensions is not None and params.dimensions > width:
            raise ValueError(f"dimensions: expected at most {width}, the model's, got {params.dimensions}")
        normalize = config.normalize if params.normalize is None else params.normalize
        return Pooling(methods=config.methods, normalize=normalize, dimensions=params.dimensions)

    def _expect_scores(self, params: PoolingParams) -> None:
        config = self._decoder.config
        if params.dimensions is not None or params.normalize is not None:
            raise ValueError("dimensions, normalize: expected none with task 'score'")
        if config.num_labels > 1:
            raise ValueError(
                f"task: {config.name} sorts texts into {config.num_labels} labels; expected one to score by"
            )
        if self._decoder.score is None and (self._labels is None or not config.generates):
            raise ValueError(f"task: {config.name} has neither a head to score by nor one token for each of yes and no")

    def finish(self, vector: Vector, pooling: Pooling) -> Vector:
        """vector: of the pooled states. Raises ArithmeticError for one that is not finite."""
        if not np.isfinite(vector).all():
            raise ArithmeticError("the model's hidden states are not finite")
        if pooling.scores:
            return self._score(vector)
        vector = vector[: pooling.dimensions]
        if not pooling.normalize:
            return vector
        wide = vector.astype(np.float64)
        normal: Vector = (wide / max(np.sqrt(np.square(wide).sum()), 1e-12)).astype(np.float32)
        return normal

    def _score(self, vector: Vector) -> Vector:
        """Between 0 and 1: the sigmoid of one label's logit, or of two, yes and no, the softmax's share of yes."""
        decoder, head = self._decoder, self._head
        x = torch.from_numpy(vector).to(decoder.device, decoder.dtype)[None]
        logits = head(x, x.new_empty(1, head.width, dtype=torch.float32))
        if decoder.score is None:
            decoder.scale_logits(logits)
        label, *other = logits[0].tolist()
        return np.array([1 / (1 + np.exp(np.float64(other[0] if other else 0) - label))], np.float32)

    @cached_property
    def _head(self) -> DenseLinear:
        if self._decoder.score is not None:
            return self._decoder.score
        assert self._labels is not None
        decoder = self._decoder
        assert decoder.head is not None
        head, hidden = cast(Packed, without_adapters(decoder.head.linear)), decoder.config.hidden_size
        ids = torch.tensor(self._labels, device=self._decoder.device)
        rows = head.embed(ids, torch.empty(2, hidden, dtype=self._decoder.dtype, device=self._decoder.device))
        return DenseLinear(ops.pack_dense(rows), 2, None if head.bias is None else head.bias[ids])
