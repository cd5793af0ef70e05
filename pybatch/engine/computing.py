"""Runs the model on a step's chunks and samples: all of a step that changes no request."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from torch import Tensor

from pybatch import ops
from pybatch.engine.beams import Candidates
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.sampler import Drawn, Sampler
from pybatch.engine.execution.step_inputs import Feed, logit_positions, pooled_positions
from pybatch.engine.execution.upload import Upload, download
from pybatch.engine.outputs import TokenLogprobs
from pybatch.engine.pooled import States
from pybatch.engine.scheduling.sequence import Request, Sequence
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.machine.faults import describe, is_request_fault


@dataclass(slots=True)
class Computed:
    """What a step has computed, before any request is changed by it."""

    chunks: list[Chunk]
    sequences: list[Sequence] = field(default_factory=list)
    """Those that get a token, once for each: the next two are theirs."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    candidates: dict[Sequence, Candidates] = field(default_factory=dict)
    """Of those that are beams."""
    verified: list[tuple[Chunk, int]] = field(default_factory=list)
    """Those with drafts, and how many of the drafts are the tokens that were sampled."""
    prompt_logprobs: list[tuple[Request, list[TokenLogprobs]]] = field(default_factory=list)
    pooled: list[tuple[Sequence, States]] = field(default_factory=list)
    """The hidden states of their next tokens."""
    faults: list[tuple[Chunk, str]] = field(default_factory=list)
    """With the error's text: the error itself would keep its frames alive, and views of arrays that are to grow."""
    postponed: list[Chunk] = field(default_factory=list)
    """Not at fault, but they share blocks that a chunk at fault was to fill."""
    run_time: float = 0.0

    def extend(self, other: Computed) -> None:
        self.chunks = self.chunks + other.chunks
        self.sequences += other.sequences
        self.tokens += other.tokens
        self.logprobs += other.logprobs
        self.candidates |= other.candidates
        self.verified += other.verified
        self.prompt_logprobs += other.prompt_logprobs
        self.pooled += other.pooled
        self.faults += other.faults
        self.postponed += other.postponed
        self.run_time += other.run_time


@dataclass(slots=True)
class Launched:
    """A step whose results may still be on their way. sequences: those that get a token, and tokens: theirs, on the
    device; None if none does."""

    chunks: list[Chunk]
    sequences: list[Sequence]
    tokens: Tensor | None
    read: Callable[[], Computed]

    @property
    def goes_on(self) -> bool:
        """Whether not all of them are known to end with that token."""
        lengths = (len(each.tokens) + 1 < each.request.max_total_tokens for each in self.sequences)
        return any(lengths) or not self.sequences


class StepComputer:
    """A model's runner and the sampler of what it returns."""

    def __init__(self, runner: ModelRunner, sampler: Sampler) -> None:
        self.runner = runner
        self.sampler = sampler

    def compute(self, chunks: list[Chunk], unwritten_blocks: Callable[[Chunk], Iterable[int]]) -> Computed:
        """Runs the model and samples. It changes nothing but keys and values that belong to the chunks, and so it can
        be done again: a batch that fails is tried in halves, down to the sequence at fault.

        unwritten_blocks: those that a chunk is to fill, as Scheduler's.
        """
        try:
            return self.launch(chunks).read()
        except BaseException as error:
            if not is_request_fault(error):
                raise
            if len(chunks) == 1:
                return Computed(chunks=[], faults=[(chunks[0], describe(error))])
        middle = len(chunks) // 2
        computed = self.compute(chunks[:middle], unwritten_blocks)
        missing = {block for chunk, _ in computed.faults for block in unwritten_blocks(chunk)}
        rest = [chunk for chunk in chunks[middle:] if missing.isdisjoint(chunk.sequence.blocks)]
        computed.postponed += [chunk for chunk in chunks[middle:] if not missing.isdisjoint(chunk.sequence.blocks)]
        if rest:
            computed.extend(self.compute(rest, unwritten_blocks))
        return computed

    def launch(self, chunks: list[Chunk], behind: Launched | None = None) -> Launched:
        """Queues a step on the device. behind: the step before, if its tokens are not known yet."""
        computed = Computed(chunks)
        decodes = num_decodes(chunks)  # in most steps all of them
        computed.sequences += [chunk.sequence for chunk in chunks[:decodes]]
        drafts: list[tuple[int, ...]] | None = None
        if any(chunk.drafts for chunk in chunks[:decodes]):
            computed.sequences = [chunk.sequence for chunk in chunks[:decodes] for _ in range(chunk.num_tokens)]
            drafts = [chunk.drafts[:i] for chunk in chunks[:decodes] for i in range(chunk.num_tokens)]
        upload = self.sampler.upload
        feed, between = (None, drafts) if behind is None else _feed(computed.sequences, behind, upload)
        row = len(computed.sequences)
        rows = list(range(row))
        told: list[tuple[Sequence, int, Tensor]] = []  # log-probabilities of the prompt: their first row, the tokens
        pooled: list[tuple[Sequence, list[int]]] = []  # rows of the step
        at = len(computed.sequences)  # the chunk's first row of the step
        for chunk in chunks[decodes:]:
            sequence, start = chunk.sequence, chunk.sequence.num_computed
            positions = logit_positions(sequence, start, start + chunk.num_tokens)
            if wanted := pooled_positions(sequence, start, start + chunk.num_tokens):
                pooled.append((sequence, [at + i - start for i in wanted]))
            at += chunk.num_tokens
            before_last = [i for i in positions if i + 1 < len(sequence.tokens)]
            if before_last:
                told.append((sequence, row, upload.ints([sequence.tokens[i + 1] for i in before_last])))
            row += len(positions)
            drawn_before = behind is not None and sequence in behind.sequences  # it was preempted, and is back
            if chunk.complete and sequence.request.pooled is None and not drawn_before:
                request = sequence.request
                samples = [sequence] if request.forked or request.beams else request.sequences
                computed.sequences += samples
                rows += [row - 1] * len(samples)
        if between is not None:
            between += [()] * (len(rows) - len(between))

        picked = upload.ints(rows) if len(chunks) > decodes and rows != list(range(row)) else None
        begin = time.perf_counter()
        with self.sampler.preparing(computed.sequences, between):
            logits = self.runner.run(chunks) if feed is None else self.runner.run(chunks, feed)
        computed.run_time = time.perf_counter() - begin
        of_prompts = [
            (sequence.request, self._prompt_logprobs(sequence, logits[first : first + len(following)], following))
            for sequence, first, following in told
        ]
        states = [(sequence, download(self.runner.hidden_states(of_step).float())) for sequence, of_step in pooled]
        drawn: Drawn | None = None
        if rows:
            if picked is not None:
                logits = ops.take_rows(logits, picked)
            drawn = self.sampler.sample(logits, computed.sequences, between)

        def read() -> Computed:
            computed.prompt_logprobs += [(request, entries()) for request, entries in of_prompts]
            computed.pooled += [(sequence, each()[0]) for sequence, each in states]
            if drawn is not None:
                sampled = drawn.read()
                computed.tokens, computed.logprobs = sampled.tokens, sampled.logprobs
                computed.candidates = {computed.sequences[row]: each for row, each in sampled.candidates.items()}
                if drafts is not None:
                    _verify(computed, chunks[:decodes])
            return computed

        return Launched(chunks, computed.sequences, None if drawn is None else drawn.tokens, read)

    def _prompt_logprobs(
        self, sequence: Sequence, logits: Tensor, following: Tensor
    ) -> Callable[[], list[TokenLogprobs]]:
        count = sequence.request.params.prompt_logprobs or 0
        return self.sampler.logprobs(logits, following, [count] * len(following))


def _feed(
    sequences: list[Sequence], behind: Launched, upload: Upload
) -> tuple[Feed | None, list[tuple[int, ...]] | None]:
    """The tokens of the step before for these sequences, which decode, and for each of them what is between its known
    tokens and the next: one that is counted but not known, or nothing."""
    count, tokens = len(sequences), behind.tokens
    if tokens is None or not sequences:
        return None, None
    if sequences == behind.sequences[:count]:
        return Feed(tokens, count), [(0,)] * count
    place = {sequence: row for row, sequence in enumerate(behind.sequences)}
    rows = [row for row, sequence in enumerate(sequences) if sequence in place]
    sources = [place[sequences[row]] for row in rows]
    between: list[tuple[int, ...]] = [(0,) if sequence in place else () for sequence in sequences]
    return Feed(tokens, len(rows), upload.ints(rows), upload.ints(sources)), between


def _verify(computed: Computed, chunks: list[Chunk]) -> None:
    """Keeps of a chunk's tokens those that follow right drafts alone.

    chunks: those that decode, to which the first tokens belong. What was sampled after a right draft is what would be
    sampled without drafts, so that this leaves the distribution as it is, and the draw too. It stands for rejection
    sampling (Leviathan et al. 2023), whose rule it is where drafts are looked up; docs/speculation.md has the rest.
    """
    kept: list[int] = []
    row = 0
    for chunk in chunks:
        sampled = computed.tokens[row : row + chunk.num_tokens]
        right = 0
        while right < len(chunk.drafts) and sampled[right] == chunk.drafts[right]:
            right += 1
        if chunk.drafts:
            computed.verified.append((chunk, right))
        kept += range(row, row + right + 1)
        row += chunk.num_tokens
    kept += range(row, len(computed.tokens))
    computed.sequences = [computed.sequences[i] for i in kept]
    computed.tokens = [computed.tokens[i] for i in kept]
    computed.logprobs = [computed.logprobs[i] for i in kept]
