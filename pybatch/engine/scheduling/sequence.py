"""A request and its sequences: one growing list of tokens per sample."""

from __future__ import annotations

import math
from array import array
from enum import Enum, auto
from pathlib import Path

from pybatch.engine.beams import BeamSearch
from pybatch.engine.detokenizer import Detokenizer
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.metrics import RequestMetrics
from pybatch.engine.outputs import FinishReason, TokenLogprobs
from pybatch.engine.pooled import Pooled
from pybatch.engine.request_params import RequestParams
from pybatch.engine.scheduling.block_pool import BlockKey, Pin
from pybatch.engine.scheduling.common_prefix import num_shared
from pybatch.engine.scheduling.pruning import NEVER, Pruning
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.engine.structured.matcher import Matcher

NO_STATE = -1  # in place of a slot


class LoadedAdapter:
    """A LoRA adapter that requests name, and its place in memory. root: what its blocks' keys begin with, so that
    prefixes are shared by requests of the same adapter alone."""

    __slots__ = ("directory", "request", "root", "slot", "used", "users")

    def __init__(self, request: LoRARequest, root: BlockKey, directory: Path) -> None:
        self.request, self.root, self.directory = request, root, directory
        self.slot: int | None = None  # where it is, if it is loaded
        self.users: set[Request] = set()  # unfinished requests, but for those that wait for a place
        self.used = 0  # when its last ended, on Adapters' clock


class Status(Enum):
    WAITING = auto()
    RUNNING = auto()
    FINISHED = auto()


class Sequence:
    """One sample of a request: its tokens, the KV blocks that hold them, and how far they are computed.

    Everything but the tokens can be recomputed from them, so a preempted sequence keeps only its tokens.
    """

    __slots__ = (
        "__weakref__",
        "blocks",
        "cumulative_logprob",
        "deadline",
        "detokenizer",
        "finish_reason",
        "held",
        "host_blocks",
        "index",
        "joined",
        "keys",
        "logprobs",
        "mass_rows",
        "matcher",
        "next_pruning",
        "next_state",
        "num_computed",
        "num_kept",
        "num_passed",
        "num_promised",
        "num_pruned",
        "num_registered",
        "paused",
        "priority",
        "queued",
        "request",
        "returning",
        "seed",
        "state",
        "state_edges",
        "status",
        "stop_reason",
        "text",
        "tokens",
    )

    def __init__(self, request: Request, index: int, seed: int, detokenizer: Detokenizer | None) -> None:
        self.request = request
        self.index = index
        self.priority = request.priority
        self.seed = seed
        self.status = Status.WAITING
        self.tokens = array("q", request.prompt_token_ids)  # prompt, then output
        self.blocks = array("i")
        self.num_promised = 0  # blocks that it is to have besides
        self.state = self.next_state = NO_STATE  # slots of what its computed tokens have left, and of what comes next
        self.state_edges = array("q")  # numbers of computed tokens at which the state is to be kept
        self.held = array("i")  # blocks that it needs besides: sinks as they were at first
        self.host_blocks = array("i")  # that a preempted one has outside the pool
        self.num_kept = 0  # tokens whose keys and values are in these
        self.num_computed = 0  # tokens whose keys and values are in the blocks, or were and have been pruned
        self.num_pruned = 0  # of them: a token's place in the blocks is its index less this, its position is its index
        self.mass_rows: tuple[int, int] | None = None  # of sums of attention: those so far, and the next step's
        self.next_pruning = request.first_pruning  # the number of computed tokens at which it is pruned next
        self.keys: list[BlockKey] = []  # in the prefix cache, of the full blocks for which one was needed
        self.num_registered = 0  # leading blocks that the prefix cache knows
        self.deadline = math.inf  # by which it is to have its first token, on the scheduler's clock
        self.queued = 0  # counts up with each sequence that comes to the queue
        self.joined = 0  # counts up with each sequence that joins
        self.num_passed = 0  # later sequences that joined while this one had no room
        self.paused: float | None = None  # when it was last preempted, or forked without room
        self.returning = False  # waiting, after it was preempted or forked without room
        self.logprobs: list[TokenLogprobs] = []
        self.cumulative_logprob = 0.0
        self.detokenizer = detokenizer
        self.matcher: Matcher | None = None  # from the first token on that a grammar tells
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self.stop_reason: int | str | None = None

    def reset(self) -> None:
        """Keeps only the tokens. The blocks are not returned to a pool: this is for starting again with a new one."""
        self.status = Status.WAITING
        del self.blocks[:], self.held[:], self.host_blocks[:]
        self.mass_rows = None
        self.num_computed = self.num_registered = self.num_passed = self.num_pruned = self.num_kept = 0
        self.num_promised = 0
        self.state = self.next_state = NO_STATE
        self.state_edges = array("q")
        self.next_pruning = self.request.first_pruning
        self.returning = False

    def branch(self) -> Sequence:
        """Another that goes on from the same tokens, without blocks."""
        other = Sequence(self.request, self.index, self.seed, None)
        other.follow(self)
        other.keys = self.keys.copy()
        other.detokenizer = None if self.detokenizer is None else self.detokenizer.branch()
        other.matcher = None if self.matcher is None else self.matcher.copy()
        return other

    def follow(self, branch: Sequence) -> None:
        """Becomes as long as a branch of its own, in its own blocks."""
        self.tokens = branch.tokens[:]
        self.logprobs = branch.logprobs.copy()
        self.cumulative_logprob = branch.cumulative_logprob
        self.detokenizer = branch.detokenizer
        self.matcher = branch.matcher

    @property
    def user(self) -> str | None:
        return self.request.user

    @property
    def urgent(self) -> bool:
        return self.request.ttft_target is not None

    @property
    def size(self) -> int:
        return len(self.tokens)

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.prompt_token_ids)

    @property
    def num_pending(self) -> int:
        """Known tokens that are not computed yet; 1 when decoding."""
        return len(self.tokens) - self.num_computed

    @property
    def num_due(self) -> int:
        """Of the pending tokens those before the next pruning, in front of which a chunk ends."""
        return min(len(self.tokens), self.next_pruning) - self.num_computed

    @property
    def num_cached(self) -> int:
        """Tokens whose keys and values are in the blocks."""
        return self.num_computed - self.num_pruned

    @property
    def output(self) -> array[int]:
        return self.tokens[len(self.request.prompt_token_ids) :]

    def make_keys(self, num_blocks: int, block_size: int) -> None:
        """Extends keys to at least num_blocks blocks, all of which must be full of known tokens."""
        for i in range(len(self.keys), num_blocks):
            tokens = self.tokens[i * block_size : (i + 1) * block_size].tobytes()
            self.keys.append(BlockKey.chained(self.key_before(i), tokens))

    def key_before(self, block: int) -> BlockKey | None:
        """What the key of this block of its table is chained to."""
        if block:
            return self.keys[block - 1]
        adapter = self.request.adapter
        return None if adapter is None else adapter.root


class Request:
    """A prompt, its sampling parameters and its n sequences, the first of which computes the prompt for all.

    beams: of a beam search. Then the sequences are the beams, one at first. They advance together: all of them are in
    the same steps, or wait as one.
    """

    __slots__ = (
        "adapter",
        "beams",
        "delivered",
        "error",
        "error_code",
        "forked",
        "grammar",
        "max_total_tokens",
        "metrics",
        "num_shared",
        "params",
        "pin",
        "pooled",
        "prompt",
        "prompt_logprobs",
        "prompt_token_ids",
        "pruning",
        "request_id",
        "sequences",
        "standing",
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
        standing: Standing = ORDINARY,
        beams: BeamSearch[Sequence] | None = None,
        pruning: Pruning | None = None,
        adapter: LoadedAdapter | None = None,
    ) -> None:
        self.request_id = request_id
        self.adapter = adapter
        self.prompt = prompt
        self.prompt_token_ids = prompt_token_ids
        self.params = params
        self.standing = standing
        self.max_total_tokens = max_total_tokens
        self.stop_ids = stop_ids  # end-of-sequence tokens, unless ignored, and stop_token_ids
        self.stream = stream
        self.pruning = pruning  # of the KV cache
        self.metrics = RequestMetrics(arrival_time, len(prompt_token_ids), num_samples=params.n)
        self.sequences: list[Sequence] = []
        self.beams = beams
        self.forked = params.n == 1 and beams is None
        self.num_shared = 0  # leading tokens, in full blocks, that all beams have, where they wait as one
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None if params.prompt_logprobs is None else [None]
        self.pooled: Pooled | None = None  # of one that generates nothing
        self.error: str | None = None
        self.pin: Pin | None = None  # is to keep the prompt's blocks when they are computed
        self.error_code = "server_error"
        self.grammar: Matcher | None = None  # at its beginning, once it is compiled
        self.delivered = [(0, 0)] * params.n  # of each sample the tokens and characters that are out, where deltas are

    @property
    def awaits_grammar(self) -> bool:
        """Whether it cannot be scheduled yet."""
        return self.params.structured_outputs is not None and self.grammar is None

    @property
    def priority(self) -> int:
        return self.standing.priority

    @property
    def user(self) -> str | None:
        return self.standing.user

    @property
    def ttft_target(self) -> float | None:
        return self.standing.ttft_target

    @property
    def tpot_target(self) -> float | None:
        return self.standing.tpot_target

    @property
    def bounded(self) -> bool:
        """Whether it is one of those of which there may be only so many."""
        return self.pin is None and not self.standing.background

    @property
    def num_places(self) -> int:
        """How many sequences it comes to."""
        return self.params.n if self.beams is None else self.beams.width

    @property
    def computes_all(self) -> bool:
        """Whether something is wanted of every token of the prompt: its log-probability or its hidden state."""
        pooled = self.pooled
        return self.prompt_logprobs is not None or (pooled is not None and pooled.pooling.of_all_tokens)

    @property
    def first_pruning(self) -> int:
        """The number of computed tokens at which its sequences are pruned for the first time."""
        return NEVER if self.pruning is None else self.pruning.first_point

    @property
    def most_shared(self) -> int:
        """The leading tokens that may come from the prefix cache. The last one's logits are always wanted."""
        return NEVER if self.pruning is None else self.pruning.most_shared

    @property
    def is_gathered(self) -> bool:
        """Whether its first beam is to compute what all of them share."""
        return self.beams is not None and not self.forked and len(self.sequences) > 1

    def gather(self, block_size: int) -> None:
        """Has its beams wait as one: the first computes the blocks that they share before the others go on from
        there."""
        self.forked = False
        first, last = min(each.tokens for each in self.sequences), max(each.tokens for each in self.sequences)
        self.num_shared = num_shared(first, last) // block_size * block_size

    @property
    def finished(self) -> bool:
        return all(sequence.status is Status.FINISHED for sequence in self.sequences)
