"""Logits to tokens and log-probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from pybatch import ops
from pybatch.engine.beams import Candidates
from pybatch.engine.execution.masks import BatchMasks
from pybatch.engine.outputs import TokenLogprobs, logprobs_entry
from pybatch.engine.request_params import as_int64
from pybatch.engine.scheduling.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Samples:
    """Per row: the token, -1 if its logits are not finite or its mask allows none, and its log-probabilities if they
    were asked for. Of the rows that are beams, by row: the candidates that their search chooses from, in place of the
    token."""

    tokens: list[int]
    logprobs: list[TokenLogprobs | None]
    candidates: dict[int, Candidates]


class Sampler:
    """Samples a step's rows in one call an op. A draw depends on its sequence's seed and length alone.

    A sequence may have several rows: one for its next token, and one for each of its drafts, for the token that follows
    if all drafts up to that one are right. Then it is the very token that would be drawn without drafts.
    """

    def __init__(self, decode_token: Callable[[int], str | None], vocab_size: int, device: torch.device) -> None:
        self._decode_token = decode_token
        self._vocab_size = vocab_size
        self._device = device
        self._batch = Batch([], device)
        self._mask_thread = ThreadPoolExecutor(1, thread_name_prefix="pybatch-masks")  # which is started when needed

    def _batch_of(self, sequences: list[Sequence]) -> Batch:
        if sequences != self._batch.sequences:
            masks = BatchMasks(sequences, self._vocab_size, self._device)
            self._batch = Batch(sequences, self._device, masks)
        return self._batch

    @contextmanager
    def preparing(self, sequences: list[Sequence], drafts: list[tuple[int, ...]] | None) -> Iterator[None]:
        """Meanwhile, and no longer, the masks are made with which `sample` then draws: beside the model's run they take
        hardly any time. The arguments are those of `sample`."""
        masks = self._batch_of(sequences).masks if sequences else None
        if masks is None or not masks.follow_grammars:
            yield
            return
        filled = self._mask_thread.submit(masks.fill, drafts)
        try:
            yield
        finally:
            wait([filled])
        filled.result()

    def sample(self, logits: Tensor, sequences: list[Sequence], drafts: list[tuple[int, ...]] | None = None) -> Samples:
        """One token a row, after `preparing`. logits: [rows, vocab] float32, changed where a sequence asks for
        it. drafts: of each row, those between the sequence's tokens and the token that is drawn; None: none of any.
        """
        batch = self._batch_of(sequences)
        before = drafts or [()] * len(sequences)
        wanted, adjusted = batch.with_logprobs, batch.adjusted(before)
        apart = wanted and (any(adjusted) or len(wanted) < len(sequences))
        raw = ops.take_rows(logits, wanted) if apart else logits
        candidates = _candidates(logits, sequences, batch, adjusted) if batch.beams else {}
        if any(adjusted):
            _adjust(logits, sequences, before, adjusted)
        tokens = batch.draw(logits, before)
        logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
        if wanted:
            counts = [sequences[i].request.params.logprobs or 0 for i in wanted]
            for i, entry in zip(wanted, self.logprobs(raw, tokens[wanted].clamp_(min=0), counts), strict=True):
                logprobs[i] = entry
        return Samples(tokens.tolist(), logprobs, candidates)

    def logprobs(self, logits: Tensor, tokens: Tensor, counts: list[int]) -> list[TokenLogprobs]:
        """Per row of logits: the token's log-probability, and those of the counts[row] likeliest tokens."""
        most = min(max(counts), logits.shape[1])
        columns = ops.token_logprobs(logits, tokens, most)
        rows = zip(tokens.tolist(), counts, *(column.tolist() for column in columns), strict=True)
        return [
            logprobs_entry(self._decode_token, token, logprob, rank, top_ids[:count], top_logprobs[:count])
            for token, count, logprob, rank, top_ids, top_logprobs in rows
        ]


def derived_seed(engine_seed: int, index: int, prompt: array[int]) -> int:
    """The seed of a request that was given none: an int64 of the prompt's tokens and its place among its caller's
    prompts, whatever the order and company in which they run."""
    data = array("q", (as_int64(engine_seed), as_int64(index))).tobytes() + prompt.tobytes()
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little", signed=True)


def sample_seed(request_seed: int, index: int) -> int:
    """The seed of sample `index`: request_seed + index, as an int64 that wraps around."""
    return as_int64(request_seed + index)


class Batch:
    """What is the same in every step with the same sequences. masks: None: all tokens may be drawn."""

    def __init__(self, sequences: list[Sequence], device: torch.device, masks: BatchMasks | None = None) -> None:
        self.sequences = sequences.copy()
        self.masks = masks
        params = [sequence.request.params for sequence in sequences]
        self.beams = [row for row, p in enumerate(params) if p.beam_width]
        self.with_logprobs = [row for row, p in enumerate(params) if p.logprobs is not None and not p.beam_width]
        self._adjusted = [p.adjusts or (p.beam_width > 0 and p.masked) for p in params]
        self._with_min_tokens = [row for row, p in enumerate(params) if p.min_tokens > 0]
        self._device = device
        self._params: tuple[Tensor, ...] | None = None
        if not all(p.greedy for p in params):
            self._params = (
                _floats([p.temperature for p in params], device),
                _ints([p.top_k for p in params], device),
                _floats([p.top_p for p in params], device),
                _floats([p.min_p for p in params], device),
                _ints([sequence.seed for sequence in sequences], device),
            )

    def adjusted(self, drafts: list[tuple[int, ...]]) -> list[bool]:
        """For each row, whether its logits need to be changed."""
        if not self._with_min_tokens:
            return self._adjusted
        adjusted = self._adjusted.copy()
        for row in self._with_min_tokens:
            sequence = self.sequences[row]
            adjusted[row] |= sequence.num_output + len(drafts[row]) < sequence.request.params.min_tokens
        return adjusted

    def draw(self, logits: Tensor, drafts: list[tuple[int, ...]]) -> Tensor:
        masks = {"masks": self.masks.on_device(), "mask_rows": self.masks.rows} if self.masks else {}
        if self._params is None:
            return ops.sample(logits, *_greedy(len(self.sequences), self._device), **masks)
        temperature, top_k, top_p, min_p, seeds = self._params
        lengths = [len(sequence.tokens) + len(more) for sequence, more in zip(self.sequences, drafts, strict=True)]
        return ops.sample(logits, temperature, top_k, top_p, min_p, seeds, _ints(lengths, self._device), **masks)


@lru_cache(maxsize=256)
def _greedy(rows: int, device: torch.device) -> tuple[Tensor, ...]:
    """What ops.sample takes after the logits where all rows are greedy, so that nothing is cut and nothing drawn."""
    zeros, ones = (make(rows, dtype=torch.float32, device=device) for make in (torch.zeros, torch.ones))
    ids = torch.zeros(rows, dtype=torch.int64, device=device)
    return zeros, ids, ones, zeros, ids, ids


def _candidates(logits: Tensor, sequences: list[Sequence], batch: Batch, adjusted: list[bool]) -> dict[int, Candidates]:
    """What each beam's search chooses from, by row. Penalties, masks and the like change log-probabilities here, not
    logits, as transformers has it: what they rule out does not make the rest likelier."""
    found: dict[int, Candidates] = {}
    for changed in (False, True):
        rows = [row for row in batch.beams if adjusted[row] is changed]
        if not rows:
            continue
        some = [sequences[row] for row in rows]
        values = ops.take_rows(logits, rows) if changed or len(rows) < len(sequences) else logits
        any_token = _ints([0] * len(rows), logits.device)
        if changed:
            _, _, likeliest, logprob = ops.token_logprobs(values, any_token, 1)
            values -= values.gather(1, likeliest) - logprob
            _adjust(values, some, [()] * len(rows), [True] * len(rows))
            if batch.masks is not None:
                batch.masks.forbid(values, rows)
        count = min(max(_num_candidates(each) for each in some), logits.shape[1])
        _, _, ids, logprobs = ops.token_logprobs(values, any_token, count)
        if changed:
            logprobs = values.gather(1, ids)
        found.update(zip(rows, map(Candidates, ids.tolist(), logprobs.tolist()), strict=True))
    return found


def _num_candidates(beam: Sequence) -> int:
    """Enough that as many as there are beams do not end, and that those which are to be reported are there."""
    request = beam.request
    width = request.params.beam_width
    return max(2 * width, width + len(request.stop_ids), request.params.logprobs or 0)


def _adjust(logits: Tensor, sequences: list[Sequence], drafts: list[tuple[int, ...]], adjusted: list[bool]) -> None:
    """Penalties, biases, bad words and min_tokens; rows that ask for none of these are left as they are."""
    repetition, presence, frequency = [], [], []
    histories: list[np.ndarray[tuple[int], np.dtype[np.int64]]] = []
    history_start, output_start, bias_start = [0], [], [0]
    bias_ids: list[int] = []
    bias_values: list[float] = []
    for sequence, more, is_adjusted in zip(sequences, drafts, adjusted, strict=True):
        params = sequence.request.params
        repetition.append(params.repetition_penalty)
        presence.append(params.presence_penalty)
        frequency.append(params.frequency_penalty)
        length = 0
        if params.penalizes:
            histories.append(np.array(sequence.tokens + array("q", more), np.int64))
            length = len(sequence.tokens) + len(more)
        output_start.append(history_start[-1] + min(length, len(sequence.request.prompt_token_ids)))
        history_start.append(history_start[-1] + length)
        if is_adjusted:
            bias = params.logit_bias | dict.fromkeys(_completing(sequence, more), -torch.inf)
            if sequence.num_output + len(more) < params.min_tokens:
                bias.update(dict.fromkeys(sequence.request.stop_ids, -torch.inf))
            bias_ids.extend(bias.keys())
            bias_values.extend(bias.values())
        bias_start.append(len(bias_ids))
    device = logits.device
    ops.adjust_logits(
        logits,
        _floats(repetition, device),
        _floats(presence, device),
        _floats(frequency, device),
        torch.from_numpy(np.concatenate(histories) if histories else np.empty(0, np.int64)).to(device),
        _ints(history_start, device),
        _ints(output_start, device),
        _ints(bias_ids, device),
        _floats(bias_values, device),
        _ints(bias_start, device),
    )


def _completing(sequence: Sequence, drafts: tuple[int, ...]) -> list[int]:
    """The tokens that would complete one of the sequence's bad words after these drafts."""
    words = sequence.request.params.bad_words
    output = [*sequence.output, *drafts] if any(len(word) > 1 for word in words) else []
    return [last for *before, last in words if before == output[len(output) - len(before) :]]


def _floats(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)


def _ints(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int64, device=device)
