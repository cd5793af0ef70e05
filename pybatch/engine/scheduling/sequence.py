"""A request and its sequences: one growing list of tokens a sample."""

from __future__ import annotations

from array import array
from enum import Enum, auto

from pybatch.engine.execution.detokenizer import Detokenizer
from pybatch.engine.metrics import RequestMetrics
from pybatch.engine.outputs import FinishReason, TokenLogprobs
from pybatch.engine.request_params import RequestParams
from pybatch.engine.scheduling.block_pool import BlockKey


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One sample of a request: its tokens, the KV blocks that hold them, and how far they are computed.

    Everything but the tokens can be computed again from them: a preempted sequence keeps its tokens alone.
    """

    __slots__ = (
        "blocks",
        "cumulative_logprob",
        "detokenizer",
        "finish_reason",
        "index",
        "joined",
        "keys",
        "logprobs",
        "num_computed",
        "num_passed",
        "num_registered",
        "request",
        "returning",
        "seed",
        "status",
        "stop_reason",
        "text",
        "tokens",
    )

    def __init__(self, request: Request, index: int, seed: int, detokenizer: Detokenizer | None) -> None:
        self.request = request
        self.index = index
        self.seed = seed
        self.status = Status.WAITING
        self.tokens = array("q", request.prompt_token_ids)  # prompt, then output
        self.blocks = array("i")
        self.num_computed = 0  # tokens whose keys and values are in the blocks
        self.keys: list[BlockKey] = []  # the prefix cache's, of full blocks, as far as they were needed
        self.num_registered = 0  # blocks that the prefix cache knows of
        self.joined = 0  # how many sequences had joined before it
        self.num_passed = 0  # later sequences that joined while this one had no room
        self.returning = False  # it waits, and has run or been sampled before
        self.logprobs: list[TokenLogprobs] = []
        self.cumulative_logprob = 0.0
        self.detokenizer = detokenizer
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    def reset(self) -> None:
        """Keeps the tokens alone. For a new schedule: the blocks are not given back."""
        self.status = Status.WAITING
        del self.blocks[:]
        self.num_computed = self.num_registered = self.num_passed = 0
        self.returning = False

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.prompt_token_ids)

    @property
    def num_pending(self) -> int:
        """Known tokens not computed yet: 1 when decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def output(self) -> array[int]:
        return self.tokens[len(self.request.prompt_token_ids) :]

    def make_keys(self, num_blocks: int, block_size: int) -> None:
        """Extends keys to at least num_blocks blocks, all of which must be full of known tokens."""
        for i in range(len(self.keys), num_blocks):
            tokens = self.tokens[i * block_size : (i + 1) * block_size].tobytes()
            self.keys.append(BlockKey.chained(self.keys[-1] if self.keys else None, tokens))


class Request:
    """A prompt, how to sample it, and its n sequences. The first sequence computes the prompt for all of them."""

    __slots__ = (
        "delivered",
        "error",
        "forked",
        "max_total_tokens",
        "metrics",
        "params",
        "prompt",
        "prompt_logprobs",
        "prompt_token_ids",
        "request_id",
        "sequences",
        "stop_ids",
        "stream",
    )

    def __init__(
        self,
        request_id: str,
        prompt: str | None,
        prompt_token_ids: list[int],
        params: RequestParams,
        *,
        max_total_tokens: int,
        stop_ids: frozenset[int],
        stream: bool,
        arrival_time: float,
    ) -> None:
        self.request_id = request_id
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.max_total_tokens = max_total_tokens
        self.stop_ids = stop_ids  # end-of-sequence tokens, unless ignored, and stop_token_ids
        self.stream = stream
        self.metrics = RequestMetrics(arrival_time, len(prompt_token_ids), num_samples=params.n)
        self.sequences: list[Sequence] = []
        self.forked = params.n == 1
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self.error: str | None = None
        self.delivered = [(0, 0)] * params.n  # of each sample the tokens and characters that are out, where deltas are

    @property
    def finished(self) -> bool:
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)
