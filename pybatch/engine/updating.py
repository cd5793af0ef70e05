"""Takes sampled tokens into their sequences, and ends those for which a token is the last."""

from __future__ import annotations

import time

from pybatch.engine.beams import Candidates, Continuation, num_considered, ranked
from pybatch.engine.computing import Computed
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.kv_pruner import KvPruner
from pybatch.engine.execution.pooler import Pooler
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.scheduling.scheduler import Scheduler
from pybatch.engine.scheduling.sequence import Request, Sequence, Status
from pybatch.engine.scheduling.step import Chunk, num_decodes
from pybatch.engine.structured.grammar import GrammarError
from pybatch.machine.faults import describe, is_request_fault
from pybatch.model.text.tokenizer import Tokenizer


class TokenUpdater:
    """For one scheduler: a new one gets its own.

    eos_ids: the model's end-of-sequence tokens.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        kv_cache: KvCache,
        pruner: KvPruner,
        metrics: EngineMetrics,
        tokenizer: Tokenizer | None,
        eos_ids: frozenset[int],
        pooler: Pooler,
    ) -> None:
        self._scheduler = scheduler
        self._kv_cache = kv_cache
        self._pruner = pruner
        self._metrics = metrics
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._pooler = pooler
        self._decode_token = (lambda token: None) if tokenizer is None else tokenizer.token_text
        self._last_tokens = 0.0  # when the last step's were taken

    def prune(self, computed: list[Chunk]) -> list[Request]:
        """Prunes the sequences that these chunks have brought to next_pruning. Returns the requests that failed."""
        for sequence in [c.sequence for c in computed if c.sequence.mass_rows]:
            before, now = sequence.mass_rows or (0, 0)
            sequence.mass_rows = now, before
        failed: list[Request] = []
        for sequence in [c.sequence for c in computed if c.sequence.num_computed == c.sequence.next_pruning]:
            if sequence.num_computed != sequence.next_pruning:  # an earlier one has preempted it
                continue
            try:
                self._pruner.prune(self._scheduler.pruner, sequence)
            except BaseException as error:
                if not is_request_fault(error):
                    raise
                self._fail_by(sequence.request, error)
                failed.append(sequence.request)
        return failed

    def take(self, computed: Computed) -> list[Request]:
        """Appends the sampled tokens, and ends the sequences for which they are the last. Returns the requests that
        stream or of which a sequence ended. One loop without a call for most tokens, since it runs for each of them."""
        told: list[Request] = []
        searches: dict[Request, None] = {}
        left = 0
        now = time.perf_counter()
        for sequence, token, logprobs in zip(computed.sequences, computed.tokens, computed.logprobs, strict=True):
            request, tokens = sequence.request, sequence.tokens
            if request.error is not None or sequence.finish_reason is not None:  # since the step was queued, too
                left += 1
                continue
            if request.metrics.first_token_time is None:
                request.metrics.first_token_time = now
                self._metrics.first_token(request.metrics, background=request.standing.background)
            try:
                if token < 0:
                    raise no_token(sequence)
                if request.beams is not None:
                    searches[request] = None
                    continue
                tokens.append(token)
                if logprobs is not None:
                    sequence.logprobs.append(logprobs)
                    sequence.cumulative_logprob += logprobs[token].logprob
                ended = sequence.matcher is not None and token not in request.stop_ids and sequence.matcher.ends(token)
                if ended or token in request.stop_ids or len(tokens) >= request.max_total_tokens:
                    self._end(sequence)
                if sequence.detokenizer is not None or sequence.finish_reason is not None:
                    self._update_text(sequence)
                if not request.forked:
                    if sequence is request.sequences[-1]:
                        self._fork(request)
                elif sequence.finish_reason is not None:
                    self._scheduler.finish(sequence)
            except BaseException as error:
                if not is_request_fault(error):
                    raise
                self._fail_by(request, error)
            if request.stream or sequence.finish_reason is not None:
                told.append(request)
        for request in searches:
            if request.error is None:
                try:
                    self._search_on(request, computed.candidates)
                except BaseException as error:
                    if not is_request_fault(error):
                        raise
                    self._fail_by(request, error)
            told.append(request)
        self._metrics.output_tokens += len(computed.sequences) - left
        self._time_tokens(computed, now, left)
        return told

    def pool(self, computed: Computed) -> list[Request]:
        """Takes hidden states into the requests that pool them, and ends those that have all. Returns these."""
        told: list[Request] = []
        for sequence, states in computed.pooled:
            request, pooled = sequence.request, sequence.request.pooled
            assert pooled is not None
            if sequence.finish_reason is not None:
                continue
            try:
                pooled.add(states)
                if sequence.num_pending:
                    continue
                pooled.vector = self._pooler.finish(pooled.result(), pooled.pooling)
                sequence.finish_reason = "stop"
                self._scheduler.finish(sequence)
            except BaseException as error:
                if not is_request_fault(error):
                    raise
                self._fail_by(request, error)
            told.append(request)
        return told

    def _time_tokens(self, computed: Computed, now: float, left: int) -> None:
        """All that decode had their last token in the step before, so that one number tells of them all, or of those
        that got as many tokens. Others had one only if they have been preempted since. left: tokens not taken."""
        decodes = num_decodes(computed.chunks)
        elapsed, tokens = now - self._last_tokens, decodes
        single = decodes - len(computed.verified) - left
        if single > 0:
            self._metrics.inter_token.add(elapsed, single)
        for _, right in computed.verified:
            self._metrics.inter_token.add(elapsed / (1 + right), 1 + right)
            tokens += right
        for sequence in computed.sequences[tokens:]:
            if sequence.num_output > 1 and sequence.paused is not None:
                self._metrics.inter_token.add(now - sequence.paused)
        self._last_tokens = now

    def _end(self, sequence: Sequence) -> None:
        """By its newest token."""
        request, token = sequence.request, sequence.tokens[-1]
        if token in request.stop_ids:
            sequence.finish_reason = "stop"
            sequence.stop_reason = None if token in self._eos_ids and not request.params.ignore_eos else token
        elif sequence.matcher is not None and sequence.matcher.ended:
            sequence.finish_reason = "stop"
        else:
            sequence.finish_reason = "length"

    def _update_text(self, sequence: Sequence) -> None:
        """Takes the newest token into the text, or all of them at the end where there is no detokenizer."""
        request, params, detokenizer = sequence.request, sequence.request.params, sequence.detokenizer
        stopped = sequence.finish_reason == "stop" and sequence.tokens[-1] in request.stop_ids
        hidden = 1 if stopped and not params.include_stop_str_in_output else 0
        if detokenizer is not None:
            last, newest = sequence.finish_reason is not None, sequence.tokens[-1:][hidden:]
            if detokenizer.add(newest, last=last, include_stop=params.include_stop_str_in_output):
                sequence.finish_reason, sequence.stop_reason = "stop", detokenizer.stop
            sequence.text = detokenizer.text if sequence.finish_reason else detokenizer.settled_text()
        elif params.detokenize and self._tokenizer is not None:
            ids = sequence.output[: sequence.num_output - hidden]
            sequence.text = self._tokenizer.decode(ids, params.skip_special_tokens, after=request.prompt_token_ids)

    def _fork(self, request: Request) -> None:
        """All samples have their first token from the prompt's logits: from here on each runs by itself."""
        request.forked = True
        parent, *children = request.sequences
        self._kv_cache.copy_blocks(self._scheduler.fork(parent, [c for c in children if c.finish_reason is None]))
        for child in children:
            self._pruner.mass.copy(parent, child)
        for sequence in request.sequences:
            if sequence.finish_reason is not None:
                self._scheduler.finish(sequence)

    def _search_on(self, request: Request, candidates: dict[Sequence, Candidates]) -> None:
        """Takes a step's candidates into a beam search: its next beams, and hypotheses that have ended."""
        search, parents = request.beams, request.sequences
        assert search is not None
        if any(beam not in candidates for beam in parents):  # they have been taken back together
            return
        length = parents[0].num_output + 1
        most = 0 if len(parents[0].tokens) + 1 >= request.max_total_tokens else search.width
        beams: list[Sequence] = []
        children: dict[Sequence, list[Sequence]] = {parent: [] for parent in parents}
        totals = [parent.cumulative_logprob for parent in parents]
        considered = num_considered(search.width, len(request.stop_ids))
        for rank, each in enumerate(ranked(totals, [candidates[parent] for parent in parents], considered)):
            if rank >= search.width and len(beams) >= most:
                break
            parent = parents[each.beam]
            child = self._extended(parent, each, candidates[parent])
            if child.finish_reason is None:
                beams.append(child)
                children[parent].append(child)
            elif rank < search.width:
                child.status = Status.FINISHED
                search.finish(child, each.total, length)
        if beams and not search.is_over(beams[0].cumulative_logprob, length):
            self._continue(request, beams, children)
            return
        if not search.hypotheses:
            raise no_token(parents[0])
        for parent in parents:
            self._scheduler.finish(parent)
        request.sequences = search.hypotheses
        _number(request)

    def _extended(self, beam: Sequence, by: Continuation, candidates: Candidates) -> Sequence:
        """A branch with one more token."""
        request, child = beam.request, beam.branch()
        child.tokens.append(by.token)
        child.cumulative_logprob = by.total
        if request.params.logprobs is not None:
            child.logprobs.append(candidates.entry(by.place, request.params.logprobs, self._decode_token))
        ended = by.token in request.stop_ids or len(child.tokens) >= request.max_total_tokens
        if child.matcher is not None and by.token not in request.stop_ids and child.matcher.ends(by.token):
            # Only the end of the sequence can follow. It does, as in transformers, unless it is not to be drawn.
            ended |= request.params.ignore_eos or child.num_output < request.params.min_tokens
        if ended:
            self._end(child)
        if child.detokenizer is not None or child.finish_reason is not None:
            self._update_text(child)
        return child

    def _continue(self, request: Request, beams: list[Sequence], children: dict[Sequence, list[Sequence]]) -> None:
        """The beams are children of those before: the first of each goes on in its parent's blocks. They wait if those
        before do, which have been preempted since the step was scheduled."""
        waits = self._scheduler.preemption.withdraw(request)
        for parent, branches in children.items():
            if branches:
                parent.follow(branches[0])
            else:
                self._scheduler.finish(parent)
        parent_of = {branches[0]: parent for parent, branches in children.items() if branches}
        request.sequences = [parent_of.get(beam, beam) for beam in beams]
        if waits:
            self._scheduler.preemption.requeue(request.sequences[0])
            return
        request.forked = True
        for parent, branches in children.items():
            if request.forked and branches:  # not if an earlier one had no room, so that all wait
                self._kv_cache.copy_blocks(self._scheduler.fork(parent, branches[1:]))

    def _fail_by(self, request: Request, error: BaseException) -> None:
        """A constraint that cannot be followed is what the caller asked for; other errors are not."""
        self.fail(request, describe(error), "invalid_request" if isinstance(error, GrammarError) else "server_error")

    def fail(self, request: Request, error: str, code: str = "server_error") -> None:
        """Ends all samples of a request with this error. code: as RequestOutput.error_code."""
        request.error, request.error_code = error, code
        for sequence in request.sequences:
            if sequence.status is not Status.FINISHED:
                sequence.finish_reason = "error"
                self._scheduler.finish(sequence)
        _number(request)


def _number(request: Request) -> None:
    """The request's answers are the first n of its sequences."""
    del request.sequences[request.params.n :]
    for index, sequence in enumerate(request.sequences):
        sequence.index = index


def no_token(sequence: Sequence) -> Exception:
    """Why none could be drawn."""
    if sequence.matcher is not None and sequence.matcher.error:
        return GrammarError(f"structured_outputs: {sequence.matcher.error}")
    params, reason = sequence.request.params, "the model's logits are not finite"
    given = {
        "structured_outputs": params.structured_outputs is not None,
        "allowed_token_ids": params.allowed is not None,
        "bad_words": bool(params.bad_words),
        "min_tokens": params.min_tokens > 0,
    }
    named = " and ".join(name for name, is_given in given.items() if is_given)
    return ArithmeticError(f"{named} leave no token to draw, or {reason}" if named else reason)
