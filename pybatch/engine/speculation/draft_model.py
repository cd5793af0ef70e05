"""A small model's own guesses at what the large one says."""

from __future__ import annotations

import weakref
from collections.abc import Sequence as Tokens
from weakref import WeakKeyDictionary

from pybatch import ops
from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.kv_cache import KvCache, kv_layout
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.sampler import Batch
from pybatch.engine.execution.state_cache import state_layout
from pybatch.engine.execution.upload import Upload
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.sequence import Sequence
from pybatch.engine.scheduling.step import Chunk
from pybatch.model.decoder import Decoder

_FEW_PENDING = 8  # tokens of a sequence that the draft model has yet to compute, as it goes on from right drafts


class _Follower:
    """A sequence as the draft model has it: with blocks of its own, and the last drafts after its tokens."""

    def __init__(self, original: Sequence) -> None:
        self.sequence = Sequence(original.request, original.index, original.seed, None)
        self.decode = Chunk(self.sequence, 1, decodes=True)  # the same for every token, as the scheduler's are
        self.drafts: list[int] = []

    def catch_up(self, original: Sequence) -> None:
        """Takes over the original's tokens. What was computed stays as far as the drafts were right."""
        mine, tokens = self.sequence.tokens, original.tokens
        same = len(mine) - len(self.drafts)
        while same < min(len(mine), len(tokens)) and mine[same] == tokens[same]:
            same += 1
        self.sequence.num_computed = min(self.sequence.num_computed, same, len(tokens) - 1)
        mine[:] = tokens
        self.drafts = []

    def add(self, draft: int) -> None:
        self.drafts.append(draft)
        self.sequence.tokens.append(draft)


class DraftModelProposer:
    """Runs the draft model over all sequences of a step at once, token by token. A token is drawn by the variates that
    the large model's own draw at that place will use, so that it is the same token almost as often as any draft can be:
    (1 - d) / (1 + d) or more, where d is the total variation distance of the two distributions (Daliri, Musco and
    Suresh 2024).

    num_blocks: of its KV pool. A sequence for which there is no room has no drafts, nor has one whose prompt the draft
    model has not read yet: that takes one pass of max_num_batched_tokens a step.
    """

    def __init__(self, decoder: Decoder, config: EngineConfig, *, num_blocks: int, max_model_len: int) -> None:
        self._context = min(decoder.context_length, max_model_len)
        self._block_size = config.block_size
        self._max_tokens = config.max_num_batched_tokens
        self._pool = BlockPool(num_blocks)
        if state_layout(decoder) is not None:
            raise ValueError(
                "speculative_config: model: its recurrent states cannot take tokens back; expected another"
            )
        self._kv_cache = KvCache(kv_layout(decoder, config), num_blocks, decoder.device)
        self._runner = ModelRunner.of(config, decoder, self._kv_cache.layers, self._context)
        self._runner.record_graphs()
        self._upload = Upload(decoder.device)
        self._followers: WeakKeyDictionary[Sequence, _Follower] = WeakKeyDictionary()
        self.has_read = False

    def propose(self, sequences: list[Sequence], counts: list[int]) -> list[Tokens[int]]:
        followers = [self._follower(sequence) for sequence in sequences]
        taking = set(followers)
        wanted: dict[_Follower, int] = {}
        for follower, count in zip(followers, counts, strict=True):
            tokens = len(follower.sequence.tokens)
            count = min(count, self._context - tokens)
            if count > 0 and self._take_blocks(follower.sequence, tokens + count - 1, taking):
                wanted[follower] = count
        active = self._read(list(wanted))
        while active := [each for each in active if len(each.drafts) < wanted[each]]:
            self._draw([each.decode for each in active], active)
        return [follower.drafts for follower in followers]

    def _follower(self, sequence: Sequence) -> _Follower:
        follower = self._followers.get(sequence)
        if follower is None:
            follower = self._followers[sequence] = _Follower(sequence)
            weakref.finalize(sequence, self._pool.release, follower.sequence.blocks).atexit = False
        follower.catch_up(sequence)
        return follower

    def _take_blocks(self, sequence: Sequence, tokens: int, taking: set[_Follower]) -> bool:
        """Gives a sequence the blocks for so many tokens. Returns whether there were enough."""
        missing = -(-tokens // self._block_size) - len(sequence.blocks)
        if missing > self._pool.num_free:
            for idle in self._followers.values():
                if idle not in taking:
                    self._pool.release(idle.sequence.blocks)
                    del idle.sequence.blocks[:]
                    idle.sequence.num_computed = 0
        if missing > self._pool.num_free:
            return False
        sequence.blocks.extend(self._pool.allocate() for _ in range(missing))
        return True

    def _read(self, followers: list[_Follower]) -> list[_Follower]:
        """Computes the tokens that the followers' originals have got, and draws the first draft of those that have
        computed all of them, which it returns."""
        chunks: list[Chunk] = []
        drafting: list[_Follower] = []
        self.has_read = any(each.sequence.num_pending > _FEW_PENDING for each in followers)
        left = self._max_tokens
        for follower in sorted(followers, key=lambda each: each.sequence.num_pending):
            pending = follower.sequence.num_pending
            count = min(pending, left)
            if count:
                chunks.append(follower.decode if pending == 1 else Chunk(follower.sequence, count))
                left -= count
            if count == pending:
                drafting.append(follower)
        if chunks:
            self._draw(chunks, drafting)
        return drafting

    def _draw(self, chunks: list[Chunk], drafting: list[_Follower]) -> None:
        """Runs the model, and draws a draft for each of those that have computed all their tokens, in their order."""
        settings = Batch([each.sequence for each in drafting]).settings([()] * len(drafting), self._upload)
        self._upload.send()
        logits = self._runner.run(chunks)
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.num_tokens
        if drafting:
            tokens = ops.sample(logits[: len(drafting)], *settings)
            for follower, token in zip(drafting, tokens.tolist(), strict=True):
                follower.add(max(token, 0))  # without a finite logit none is drawn, and any will do
