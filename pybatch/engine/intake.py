"""From a caller's prompt and parameters to a request that can run, or a ValueError."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from pybatch.engine.adapters import Adapters
from pybatch.engine.beams import BeamSearch
from pybatch.engine.detokenizer import Detokenizer
from pybatch.engine.execution.sampler import derived_seed, sample_seed
from pybatch.engine.pooled import Pooled
from pybatch.engine.pooling_params import Params, Pooling, PoolingParams
from pybatch.engine.request_params import RequestParams, checked, expect_in_vocabulary, plain_values, resolve
from pybatch.engine.sampling_params import RequestOutputKind, SamplingParams
from pybatch.engine.scheduling.pruning import Pruning, make_pruning
from pybatch.engine.scheduling.room import Room
from pybatch.engine.scheduling.sequence import Request, Sequence
from pybatch.engine.scheduling.state_slots import SLOTS
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.model.errors import PromptTooLongError
from pybatch.model.text.tokenizer import Tokenizer

_KNOWN = 64  # parameters that are kept


class Intake:
    """Makes requests for one engine, and keeps nothing of them but a few parameters.

    seed: of the draws of requests that have none. num_states: slots of recurrent states; 0: the model has none.
    no_pruning: why KV caches cannot be pruned; None if they can. no_text: why nothing can be generated; None if it can.
    pooling: what PoolingParams come to; it raises ValueError. adapters: that requests may name; None: there are none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        *,
        eos_ids: frozenset[int],
        vocab_size: int,
        max_model_len: int,
        seed: int,
        max_num_seqs: int,
        num_kv_blocks: int,
        block_size: int,
        num_states: int = 0,
        no_pruning: str | None = None,
        no_text: str | None = None,
        pooling: Callable[[PoolingParams], Pooling] | None = None,
        adapters: Adapters | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len
        self._seed = seed
        self._max_num_seqs = max_num_seqs
        self._num_kv_blocks = num_kv_blocks
        self._block_size = block_size
        self._num_states = num_states
        self.room = Room(num_kv_blocks, block_size, max_model_len, recurrent=num_states > 0)
        self._pool = f"{num_kv_blocks} KV blocks of {block_size} tokens"
        self._adapters = Adapters(None) if adapters is None else adapters
        self._no_pruning, self._no_text, self._pooling_of = no_pruning, no_text, pooling
        self._known: dict[tuple[object, ...], RequestParams] = {}  # by their plain_values

    def request(
        self,
        request_id: str,
        prompt_token_ids: Iterable[int],
        params: Params,
        *,
        prompt: str | None = None,
        stream: bool = False,
        index: int = 0,
        arrival_time: float | None = None,
        standing: Standing = ORDINARY,
    ) -> Request:
        """A request that shares nothing with the arguments, which are those of Engine.add_request."""
        tokens, resolved = self.accept(prompt_token_ids, params)
        most = self._longest(tokens, resolved)
        width = resolved.beam_width
        beams: BeamSearch[Sequence] | None = None
        if width:
            beams = BeamSearch(
                width,
                length_penalty=resolved.length_penalty,
                early_stopping=resolved.early_stopping,
                max_length=most - len(tokens),
            )
        request = Request(
            request_id,
            prompt,
            tokens.tolist(),
            resolved,
            max_total_tokens=most,
            stop_ids=resolved.stop_token_ids | (frozenset() if resolved.ignore_eos else self._eos_ids),
            stream=stream and resolved.output_kind is not RequestOutputKind.FINAL_ONLY and not width,
            arrival_time=time.perf_counter() if arrival_time is None else arrival_time,
            standing=standing,
            beams=beams,
            pruning=self._pruning(len(tokens), most, resolved),
            adapter=None if resolved.lora_request is None else self._adapters.find(resolved.lora_request),
        )
        if resolved.pooling is not None:
            request.pooled = Pooled(resolved.pooling)
        seed = resolved.seed
        if seed is None:
            seed = 0 if resolved.greedy else derived_seed(self._seed, index, tokens)
        for i in range(1 if width else resolved.n):
            request.sequences.append(Sequence(request, i, sample_seed(seed, i), self._detokenizer(request)))
        return request

    def accept(self, prompt_token_ids: Iterable[int], params: Params) -> tuple[array[int], RequestParams]:
        """The tokens to run and the parameters in the kernels' numbers. Raises ValueError if they cannot be run."""
        resolved = self._resolved(params)
        tokens = self._token_ids(prompt_token_ids)
        if resolved.pooling is None:
            tokens = self._last_tokens(tokens, resolved.truncate_prompt_tokens)
        else:
            tokens = self._first_tokens(tokens, resolved.truncate_prompt_tokens)
        self._pruning(len(tokens), self._longest(tokens, resolved), resolved)
        if resolved.lora_request is not None:
            self._adapters.find(resolved.lora_request)
        return tokens, resolved

    def _longest(self, tokens: array[int], params: RequestParams) -> int:
        """The tokens of prompt and output together at most. Raises ValueError if there is no room for one of output, or
        if a beam search does not fit."""
        prompt = len(tokens)
        most = self.room.most_tokens(tokens, shares=not params.needs_all_blocks)
        output = "" if params.pooling else "and one of output "
        if prompt + bool(output) > most:
            beside = "" if most == self._max_model_len else f", of which {most} tokens are free beside pinned prefixes"
            raise PromptTooLongError(
                f"prompt: {prompt} tokens {output}do not fit max_model_len = {self._max_model_len} "
                f"({self._pool}{beside})"
            )
        if params.max_tokens is not None:
            most = min(most, prompt + params.max_tokens)
        width = params.beam_width
        if width <= 1:
            return most
        if width > self._max_num_seqs:
            raise ValueError(f"n: {width} beams are in a step together, but max_num_seqs = {self._max_num_seqs}")
        if 0 < self._num_states < SLOTS * width:
            raise ValueError(
                f"n: {width} beams have {SLOTS * width} recurrent states, but there is memory for {self._num_states}; "
                f"give at most {self._num_states // SLOTS}, or raise memory_utilization"
            )
        shared = prompt // self._block_size  # blocks; beams may have all others to themselves
        free = self._num_kv_blocks - self.room.num_pinned
        fits = (shared + (free - shared) // width) * self._block_size
        if fits <= prompt or (params.max_tokens is not None and fits < most):
            advice = "give fewer" if fits <= prompt else f"with max_tokens = {fits - prompt} they would"
            raise ValueError(f"n: {width} beams of {most} tokens do not fit {self._pool}; {advice}")
        return min(most, fits)

    def _pruning(self, prompt: int, most: int, params: RequestParams) -> Pruning | None:
        if params.kv_policy is None:
            return None
        if params.beam_width:
            raise ValueError("kv_policy: expected none with use_beam_search: beams share what each would prune")
        if self._no_pruning is not None:
            raise ValueError(f"kv_policy: expected none, since {self._no_pruning}")
        pruning = make_pruning(params.kv_policy, prompt, self._block_size)
        needed, free = pruning.peak_tokens // self._block_size, self._num_kv_blocks - self.room.num_pinned
        if pruning.first_point < most and needed > free:
            raise ValueError(
                f"kv_policy: {params.kv_policy} needs up to {needed} KV blocks of {self._block_size} tokens at once, "
                f"but {free} are there for it"
            )
        return pruning

    def _resolved(self, params: Params) -> RequestParams:
        """A job's rows mostly have the same parameters: they are checked once, not for each row."""
        values = (params,) if isinstance(params, PoolingParams) else plain_values(params)
        found = None if values is None else self._known.get(values)
        if found is None:
            found = self._resolve_pooling(params) if isinstance(params, PoolingParams) else self._resolve(params)
            if values is not None:
                if len(self._known) == _KNOWN:
                    self._known.clear()
                self._known[values] = found
        return found

    def _resolve(self, params: SamplingParams) -> RequestParams:
        if self._no_text is not None:
            raise ValueError(f"sampling_params: expected PoolingParams, since {self._no_text}")
        return resolve(
            checked(params),
            max_model_len=self._max_model_len,
            vocab_size=self._vocab_size,
            encode=None if self._tokenizer is None else self._encode_word,
        )

    def _resolve_pooling(self, params: PoolingParams) -> RequestParams:
        if self._pooling_of is None:
            raise ValueError("pooling_params: expected none here")
        unsampled = SamplingParams(
            temperature=0, detokenize=False, truncate_prompt_tokens=params.truncate_prompt_tokens
        )
        resolved = resolve(unsampled, max_model_len=self._max_model_len, vocab_size=self._vocab_size, encode=None)
        return replace(resolved, max_tokens=0, pooling=self._pooling_of(params))

    def _token_ids(self, prompt: Iterable[int]) -> array[int]:
        try:
            tokens = array("q", list(prompt))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"prompt: expected token ids: {error}") from error
        if not tokens:
            raise ValueError("prompt: expected at least one token, got none")
        if np.frombuffer(tokens, np.uint64).max() >= self._vocab_size:  # negative ones are larger than any other
            expect_in_vocabulary("prompt", tokens, self._vocab_size)
        return tokens

    def _last_tokens(self, tokens: array[int], keep: int | None) -> array[int]:
        """What SamplingParams.truncate_prompt_tokens keeps."""
        if keep is None:
            return tokens
        return tokens[-(self._max_model_len - 1 if keep == -1 else keep) :]

    def _first_tokens(self, tokens: array[int], keep: int | None) -> array[int]:
        """What PoolingParams.truncate_prompt_tokens keeps."""
        keep = self._max_model_len if keep == -1 else keep
        if keep is None or len(tokens) <= keep:
            return tokens
        end = tokens[-1:] if tokens[-1] in self._eos_ids and keep > 1 else tokens[:0]
        return tokens[: keep - len(end)] + end

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
