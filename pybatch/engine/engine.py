"""The engine: requests in, outputs out, one step at a time: schedule, run, sample, update."""

from __future__ import annotations

import time
from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from pybatch.engine.config import EngineConfig
from pybatch.engine.execution.detokenizer import Detokenizer
from pybatch.engine.execution.kv_cache import KvCache, capacity, kv_layout
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.sampler import Sampler, Samples, derived_seed, sample_seed
from pybatch.engine.execution.step_inputs import logit_positions
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from pybatch.engine.request_params import RequestParams, checked, expect_in_vocabulary, resolve, truncated
from pybatch.engine.sampling_params import RequestOutputKind, SamplingParams
from pybatch.engine.scheduling.block_pool import BlockPool
from pybatch.engine.scheduling.policies import make_policy
from pybatch.engine.scheduling.scheduler import Chunk, Scheduler, num_decodes
from pybatch.engine.scheduling.sequence import Request, Sequence, Status
from pybatch.machine.torch_state import neutral_torch
from pybatch.model.decoder import Decoder
from pybatch.model.text.tokenizer import Tokenizer

_IDLE_SLEEP = 0.001  # seconds, where a policy holds back all there is


class Engine:
    """Runs many requests at once on one model. Not for use by two threads at a time.

    tokenizer may be None: then outputs have no text, and stop strings are refused.

    A request that fails comes out with finish_reason "error" and disturbs no other. If a step itself raises (out of
    memory, Ctrl-C), the requests under way cannot be trusted any more: the engine drops them all, and is as new.
    """

    @neutral_torch()
    def __init__(self, decoder: Decoder, tokenizer: Tokenizer | None, config: EngineConfig) -> None:
        self.config = config
        self._decoder = decoder
        self._tokenizer = tokenizer
        layout = kv_layout(decoder, config)
        self.max_model_len, self.num_kv_blocks = capacity(decoder, config, layout)
        self._kv_cache = KvCache(layout, self.num_kv_blocks, decoder.device)
        self._runner = ModelRunner(
            decoder,
            self._kv_cache,
            block_size=config.block_size,
            max_tokens=config.max_num_batched_tokens,
            max_seqs=config.max_num_seqs,
            max_blocks=-(-self.max_model_len // config.block_size),
        )
        self._sampler = Sampler((lambda token: None) if tokenizer is None else tokenizer.token_text)
        own_ids = () if tokenizer is None else tokenizer.eos_token_ids
        all_ids = {*decoder.config.eos_token_ids, *own_ids}
        self._eos_ids = frozenset(token for token in all_ids if 0 <= token < decoder.config.vocab_size)
        self.metrics = EngineMetrics(self.num_kv_blocks)
        self._start_afresh()

    @property
    def weight_bytes(self) -> int:
        return self._decoder.weight_bytes()

    @property
    def kv_cache_bytes(self) -> int:
        """Of the whole pool; memory that no request has touched yet is not resident."""
        return self._kv_cache.pool.nbytes

    def add_request(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        prompt: str | None = None,
        stream: bool = False,
        index: int = 0,
    ) -> None:
        """Queues a request. Raises ValueError, with the numbers, if it can never be run; nothing is left of it then.

        params: copied. prompt: the text, handed through to the outputs. stream: an output after every step that brought
        something new, as params.output_kind has it. index: the prompt's place among the caller's prompts, so that equal
        prompts without a seed draw differently.
        """
        if request_id in self._requests:
            raise ValueError(f"request_id: {request_id!r} is in use by a request that has not finished")
        own = checked(params)
        tokens = array("q", truncated(self._token_ids(prompt_token_ids), own, self.max_model_len))
        self._expect_room(len(tokens))
        resolved = resolve(
            own,
            prompt_tokens=len(tokens),
            max_model_len=self.max_model_len,
            vocab_size=self._decoder.config.vocab_size,
            encode=None if self._tokenizer is None else self._encode_word,
        )
        stream = stream and resolved.output_kind is not RequestOutputKind.FINAL_ONLY
        request = Request(
            request_id,
            prompt,
            tokens.tolist(),
            resolved,
            max_total_tokens=resolved.max_total_tokens,
            stop_ids=resolved.stop_token_ids | (frozenset() if resolved.ignore_eos else self._eos_ids),
            stream=stream,
            arrival_time=time.perf_counter(),
        )
        seed = resolved.seed
        if seed is None:
            seed = 0 if resolved.greedy else derived_seed(self.config.seed or 0, index, tokens)
        for i in range(resolved.n):
            request.sequences.append(Sequence(request, i, sample_seed(seed, i), self._detokenizer(request)))
        self._scheduler.add(request.sequences[0])
        self._requests[request_id] = request

    @neutral_torch()
    def step(self) -> list[RequestOutput]:
        """One step of the batch. Returns every request that finished, and what is new of those that stream."""
        try:
            return self._step()
        except BaseException:
            self._start_afresh()
            raise

    def abort(self, request_id: str) -> None:
        """Drops a request; no output of it follows. An id that is not known, or has finished, is ignored."""
        request = self._requests.pop(request_id, None)
        if request is not None:
            for sequence in request.sequences:
                self._scheduler.finish(sequence)

    def has_unfinished(self) -> bool:
        return bool(self._requests)

    def num_unfinished(self) -> int:
        return len(self._requests)

    def check_integrity(self) -> None:
        """Raises IntegrityError unless every KV block is accounted for: with no request left, all are free."""
        self._scheduler.check_integrity()

    def _start_afresh(self) -> None:
        config = self.config
        self._requests: dict[str, Request] = {}
        self._pool = BlockPool(self.num_kv_blocks)
        self._scheduler = Scheduler(
            self._pool,
            make_policy(config.policy, max_batch_wait=config.max_batch_wait),
            block_size=config.block_size,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            prefix_caching=config.enable_prefix_caching,
        )

    # ---- a request comes in ----

    def _token_ids(self, prompt: Iterable[int]) -> list[int]:
        """A copy."""
        try:
            ids = array("q", list(prompt)).tolist()
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"prompt: expected token ids: {error}") from error
        if not ids:
            raise ValueError("prompt: expected at least one token, got none")
        vocab_size = self._decoder.config.vocab_size
        if not (min(ids) >= 0 and max(ids) < vocab_size):
            expect_in_vocabulary("prompt", ids, vocab_size)
        return ids

    def _expect_room(self, num_tokens: int) -> None:
        if num_tokens >= self.max_model_len:
            raise ValueError(
                f"prompt: {num_tokens} tokens and one of output do not fit max_model_len = "
                f"{self.max_model_len} ({self.num_kv_blocks} KV blocks of {self.config.block_size} tokens)"
            )

    def _encode_word(self, text: str) -> list[int]:
        assert self._tokenizer is not None
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _detokenizer(self, request: Request) -> Detokenizer | None:
        """None where the text is wanted at the end only: it costs least there."""
        params = request.params
        if self._tokenizer is None or not params.detokenize or not (request.stream or params.stop_strings):
            return None
        stream = self._tokenizer.text_stream(params.skip_special_tokens, after=request.prompt_token_ids)
        return Detokenizer(stream, params.stop_strings, min_tokens=params.min_tokens)

    # ---- a step ----

    def _step(self) -> list[RequestOutput]:
        begin = time.perf_counter()
        preemptions = self._scheduler.num_preemptions
        chunks = self._scheduler.schedule()
        if not chunks:
            time.sleep(_IDLE_SLEEP if self._requests else 0)
            return []
        scheduled = time.perf_counter()
        logits = self._runner.run(chunks)
        ran = time.perf_counter()
        outputs = [self._output(request) for request in self._sample(chunks, logits)]
        self.metrics.step(
            tokens=sum(chunk.num_tokens for chunk in chunks),
            sequences=len(chunks),
            kv_blocks=self._pool.num_used,
            preemptions=self._scheduler.num_preemptions - preemptions,
            schedule_time=scheduled - begin,
            run_time=ran - scheduled,
            sample_time=time.perf_counter() - ran,
        )
        return outputs

    def _sample(self, chunks: list[Chunk], logits: Tensor) -> list[Request]:
        """Samples the next tokens and updates all states. Returns the requests of which there is something to tell."""
        decodes = num_decodes(chunks)
        sequences = [chunk.sequence for chunk in chunks[:decodes]]
        rows = list(range(decodes))
        row = decodes
        for chunk in chunks[decodes:]:
            sequence, begin = chunk.sequence, chunk.sequence.num_computed
            positions = logit_positions(sequence, begin, begin + chunk.num_tokens)
            before_last = [i for i in positions if i + 1 < len(sequence.tokens)]
            if before_last:
                self._report_prompt(sequence, logits[row : row + len(before_last)], before_last)
            row += len(positions)
            if chunk.complete:
                samples = [sequence] if sequence.request.forked else sequence.request.sequences
                sequences += samples
                rows += [row - 1] * len(samples)
        for chunk in chunks:
            chunk.sequence.num_computed += chunk.num_tokens
        if not sequences:
            return []
        if len(rows) < row or len(set(rows)) < len(rows):
            logits = logits[rows]
        self._take(sequences, self._sampler.sample(logits, sequences))
        ready = [s.request for s in sequences if s.finish_reason is not None or s.request.stream]
        return [request for request in dict.fromkeys(ready) if request.stream or request.finished]

    def _report_prompt(self, sequence: Sequence, logits: Tensor, positions: list[int]) -> None:
        request = sequence.request
        count = request.params.prompt_logprobs or 0
        following = torch.tensor([sequence.tokens[i + 1] for i in positions], device=logits.device)
        assert request.prompt_logprobs is not None
        request.prompt_logprobs += self._sampler.logprobs(logits, following, [count] * len(positions))

    def _take(self, sequences: list[Sequence], samples: Samples) -> None:
        now = time.perf_counter()
        rows = zip(sequences, samples.tokens, samples.logprobs, strict=True)
        for sequence, token, logprobs in rows:
            request = sequence.request
            if request.error is not None:  # by another of its samples
                continue
            if request.metrics.first_token_time is None:
                request.metrics.first_token_time = now
            try:
                if token < 0:
                    raise ArithmeticError(no_token(request.params))
                self._append(sequence, token, logprobs)
            except Exception as error:  # whatever it is, it is this request's and nobody else's
                self._fail(request, error)
        self._fork_new_samples(sequences)
        for sequence in sequences:
            if sequence.finish_reason is not None:
                self._scheduler.finish(sequence)
        self.metrics.output_tokens += len(sequences)

    def _append(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> None:
        request, params = sequence.request, sequence.request.params
        sequence.tokens.append(token)
        if logprobs is not None:
            sequence.logprobs.append(logprobs)
            sequence.cumulative_logprob += logprobs[token].logprob
        if token in request.stop_ids:
            sequence.finish_reason = "stop"
            is_eos = token in self._eos_ids and not params.ignore_eos
            sequence.stop_reason = None if is_eos else token
        elif len(sequence.tokens) >= request.max_total_tokens:
            sequence.finish_reason = "length"
        if sequence.detokenizer is not None or sequence.finish_reason is not None:
            self._update_text(sequence)

    def _update_text(self, sequence: Sequence) -> None:
        """Takes the newest token into the text, or all of them at the end where there is no detokenizer."""
        request, params, detokenizer = sequence.request, sequence.request.params, sequence.detokenizer
        hidden = 1 if sequence.finish_reason == "stop" and not params.include_stop_str_in_output else 0
        if detokenizer is not None:
            last, newest = sequence.finish_reason is not None, sequence.tokens[-1:][hidden:]
            if detokenizer.add(newest, last=last, include_stop=params.include_stop_str_in_output):
                sequence.finish_reason, sequence.stop_reason = "stop", detokenizer.stop
            sequence.text = detokenizer.text if sequence.finish_reason else detokenizer.settled_text()
        elif params.detokenize and self._tokenizer is not None:
            ids = sequence.output[: sequence.num_output - hidden]
            sequence.text = self._tokenizer.decode(ids, params.skip_special_tokens, after=request.prompt_token_ids)

    def _fail(self, request: Request, error: Exception) -> None:
        request.error = f"{type(error).__name__}: {error}"
        for sequence in request.sequences:
            if sequence.status is not Status.FINISHED:
                sequence.finish_reason = "error"
                self._scheduler.finish(sequence)

    def _fork_new_samples(self, sequences: list[Sequence]) -> None:
        """Where a request's prompt has just been computed, all its samples have their first token: from here on each
        runs by itself."""
        pairs: list[tuple[int, int]] = []
        for parent in sequences:
            request = parent.request
            if not request.forked and request.error is None:
                request.forked = True
                children = [child for child in request.sequences[1:] if child.finish_reason is None]
                pairs += self._scheduler.fork(parent, children)
        self._kv_cache.copy_blocks(pairs)

    # ---- a request goes out ----

    def _output(self, request: Request) -> RequestOutput:
        finished = request.finished
        metrics = request.metrics
        metrics.num_output_tokens = sum(sequence.num_output for sequence in request.sequences)
        if finished:
            metrics.finished_time = time.perf_counter()
            self.metrics.finished(metrics, failed=request.error is not None)
            del self._requests[request.request_id]
        delta = request.stream and request.params.output_kind is RequestOutputKind.DELTA
        first = request.delivered[0] == (0, 0)
        return RequestOutput(
            request_id=request.request_id,
            prompt=request.prompt,
            prompt_token_ids=request.prompt_token_ids,
            prompt_logprobs=request.prompt_logprobs if first else None,
            outputs=[_completion(sequence, delta) for sequence in request.sequences],
            finished=finished,
            metrics=metrics,
            error=request.error,
            num_cached_tokens=metrics.num_cached_tokens,
        )


def _completion(sequence: Sequence, delta: bool) -> CompletionOutput:
    """delta: only what is new since the last output."""
    request = sequence.request
    wants_logprobs = request.params.logprobs is not None
    tokens, characters = request.delivered[sequence.index]
    if delta:
        request.delivered[sequence.index] = sequence.num_output, len(sequence.text)
    return CompletionOutput(
        index=sequence.index,
        text=sequence.text[characters:],
        token_ids=sequence.output[tokens:].tolist(),
        cumulative_logprob=sequence.cumulative_logprob if wants_logprobs else None,
        logprobs=sequence.logprobs[tokens:] if wants_logprobs else None,
        finish_reason=sequence.finish_reason,
        stop_reason=sequence.stop_reason,
    )


def no_token(params: RequestParams) -> str:
    """Why none could be drawn."""
    reason = "the model's logits are not finite"
    if params.disallowed is None and not params.bad_words and not params.min_tokens:
        return reason
    return f"allowed_token_ids, bad_words and min_tokens leave no token to draw, or {reason}"
