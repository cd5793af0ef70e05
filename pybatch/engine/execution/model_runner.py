"""Runs the model on the scheduler's chunks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.attention_mass import AttentionMass
from pybatch.engine.execution.decode_graphs import DecodeGraphs
from pybatch.engine.execution.parallel.followers import Followers
from pybatch.engine.execution.step_inputs import Feed, StepInputs
from pybatch.engine.scheduling.step import Chunk
from pybatch.machine.faults import describe
from pybatch.machine.progress_bar import progress_bar
from pybatch.machine.ranks import RankError
from pybatch.model.batch import AnyCache, ForwardBatch, LayerState
from pybatch.model.decoder import Decoder


class ModelRunner:
    """Runs steps in its own buffers, so what it returns is valid until the next call.

    caches: one a layer. max_drafts: of one sequence in a step. mass: to which the attention of sequences that are
    pruned by it is added; such steps do not run as graphs. followers: the other ranks, where several hold the model.
    adapters: whether sequences may have some.
    """

    def __init__(
        self,
        decoder: Decoder,
        caches: Sequence[AnyCache],
        *,
        block_size: int,
        max_tokens: int,
        max_seqs: int,
        max_blocks: int,
        max_drafts: int = 0,
        mass: AttentionMass | None = None,
        followers: Followers | None = None,
        adapters: bool = False,
    ) -> None:
        self._decoder = decoder
        self._caches = caches
        self._mass = mass
        self._followers = followers
        max_seqs = min(max_seqs, max_tokens)
        self._inputs = StepInputs(
            max_tokens=max_tokens,
            max_seqs=max_seqs,
            max_blocks=max_blocks,
            block_size=block_size,
            device=decoder.device,
            adapters=adapters,
            states=any(isinstance(cache, LayerState) for cache in caches),
        )
        drafted = min(max_tokens, max_seqs * (1 + max_drafts))
        self._graphs = DecodeGraphs(decoder, caches, self._inputs, max_seqs=max_seqs, max_tokens=drafted)

    @classmethod
    def of(
        cls,
        config: EngineConfig,
        decoder: Decoder,
        caches: Sequence[AnyCache],
        max_model_len: int,
        **more: Any,
    ) -> ModelRunner:
        """The runner that these settings need."""
        return cls(
            decoder,
            caches,
            block_size=config.block_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_blocks=-(-max_model_len // config.block_size),
            **more,
        )

    def record_graphs(self, show: bool | None = None) -> None:
        """Records those that are to be there before the first step. show: a bar; None: on a terminal."""
        with progress_bar("Recording decode steps", self._graphs.num_at_start, show) as advance:
            self._graphs.record_all(advance)

    @property
    def is_ahead_of_device(self) -> bool:
        """Whether `run` returns before its logits are there, and the engine is to make use of it: no chip has run it so
        yet, so PYBATCH_UNTRIED=1 has to ask for it."""
        return self._decoder.device.type != "cpu" and os.environ.get("PYBATCH_UNTRIED") == "1"

    def run(self, chunks: list[Chunk], feed: Feed | None = None) -> Tensor:
        """One forward pass. Returns logits, [L, vocab] float32: the rows of each chunk's logit_positions. feed: of
        chunks that decode."""
        if self._followers is not None:
            return self._lead(self._inputs.fill(chunks), self._followers)
        observed = None if self._mass is None else self._mass.observed(chunks)
        if observed is None and self._graphs.takes(chunks):
            return self._graphs.run(chunks, feed)
        batch = self._inputs.fill(chunks, feed=feed)
        if observed is not None:
            batch = replace(batch, observed=observed)
        return self._decoder.forward(batch, self._caches)

    def hidden_states(self, rows: list[int]) -> Tensor:
        """Of these of the last step's tokens, behind the last norm: [len(rows), hidden_size]. The step had chunks that
        do not decode."""
        return self._decoder.hidden_states(rows)

    def _lead(self, batch: ForwardBatch, followers: Followers) -> Tensor:
        """A step that ends early leaves the others waiting for this rank, so it is the last."""
        followers.forward(batch)
        try:
            return self._decoder.forward(batch, self._caches)
        except RankError:
            raise
        except BaseException as error:
            raise RankError(followers.world.end(describe(error))) from error
