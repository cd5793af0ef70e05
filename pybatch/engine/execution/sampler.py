"""Logits to tokens and log-probabilities."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pybatch import ops
from pybatch.engine.beams import Candidates, num_considered
from pybatch.engine.execution.masks import BatchMasks
from pybatch.engine.execution.upload import Upload, download
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


class Drawn(NamedTuple):
    """What `sample` has drawn. tokens: on the device. read: waits for all of it."""

    tokens: Tensor
    read: Callable[[], Samples]


class Sampler:
    """Samples a step's rows in one call an op. A draw depends on its sequence's seed and length alone.

    A sequence may have several rows: one for its next token, and one for each of its drafts, for the token that follows
    if all drafts up to that one are right. Then it is the very token that would be drawn without drafts.
    """

    def __init__(self, decode_token: Callable[[int], str | None], vocab_size: int, device: torch.device) -> None:
        self._decode_token = decode_token
        self._vocab_size = vocab_size
        self._device = device
        self.upload = Upload(device)
        self._batch = Batch([])
        self._mask_thread = ThreadPoolExecutor(1, thread_name_prefix="pybatch-masks")  # which is started when needed

    @contextmanager
    def preparing(self, sequences: list[Sequence], drafts: list[tuple[int, ...]] | None) -> Iterator[None]:
        """The model runs inside. What `sample` then takes besides its logits is sent to the device before, with all
        that is in `upload`; the masks are made meanwhile, and no longer: beside the model they take hardly any time.
        The arguments are those of `sample`."""
        if sequences and sequences != self._batch.sequences:
            self._batch = Batch(sequences, BatchMasks(sequences, self._vocab_size, self._device))
        if sequences:
            self._inputs = Inputs(self._batch, drafts or [()] * len(sequences), self.upload)
        self.upload.send()
        masks = self._batch.masks if sequences else None
        if masks is None or not masks.follow_grammars:
            yield
            return
        filled = self._mask_thread.submit(masks.fill, drafts)
        try:
            yield
        finally:
            wait([filled])
        filled.result()

    def sample(self, logits: Tensor, sequences: list[Sequence], drafts: list[tuple[int, ...]] | None = None) -> Drawn:
        """One token a row, after `preparing`. logits: [rows, vocab] float32, changed where a sequence asks for
        it. drafts: of each row, those between the sequence's tokens and the token that is drawn; None: none of any.
        """
        batch, inputs = self._batch, self._inputs
        wanted, reported = batch.with_logprobs, inputs.reported
        raw = logits if reported is None else ops.take_rows(logits, reported)
        candidates = {row: each for beams in inputs.beams for row, each in _candidates(logits, beams, batch.masks)}
        if inputs.adjustments is not None:
            ops.adjust_logits(logits, *inputs.adjustments)
        masks = batch.masks.on_device() if batch.masks else None
        tokens = ops.sample(logits, *inputs.settings, masks=masks, mask_rows=inputs.mask_rows)
        entries: Callable[[], list[TokenLogprobs]] | None = None
        if wanted:
            counts = [sequences[i].request.params.logprobs or 0 for i in wanted]
            drawn = (tokens if reported is None else tokens[reported]).clamp(min=0)
            entries = self.logprobs(raw, drawn, counts)
        on_host = download(tokens)

        def read() -> Samples:
            logprobs: list[TokenLogprobs | None] = [None] * len(sequences)
            if entries is not None:
                for i, entry in zip(wanted, entries(), strict=True):
                    logprobs[i] = entry
            return Samples(on_host()[0].tolist(), logprobs, candidates)

        return Drawn(tokens, read)

    def logprobs(self, logits: Tensor, tokens: Tensor, counts: list[int]) -> Callable[[], list[TokenLogprobs]]:
        """Per row of logits, when they are asked for: the token's log-probability, and those of the counts[row]
        likeliest tokens."""
        on_host = download(tokens, *ops.token_logprobs(logits, tokens, min(max(counts), logits.shape[1])))

        def read() -> list[TokenLogprobs]:
            drawn, *columns = (column.tolist() for column in on_host())
            return [
                logprobs_entry(self._decode_token, token, logprob, rank, top_ids[:count], top_logprobs[:count])
                for token, count, logprob, rank, top_ids, top_logprobs in zip(drawn, counts, *columns, strict=True)
            ]

        return read


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

    def __init__(self, sequences: list[Sequence], masks: BatchMasks | None = None) -> None:
        self.sequences = sequences.copy()
        self.masks = masks
        params = [sequence.request.params for sequence in sequences]
        self.beams = [row for row, p in enumerate(params) if p.beam_width]
        self.with_logprobs = [row for row, p in enumerate(params) if p.logprobs is not None and not p.beam_width]
        self._adjusted = [p.adjusts or (p.beam_width > 0 and p.masked) for p in params]
        self._with_min_tokens = [row for row, p in enumerate(params) if p.min_tokens > 0]
        self._params: tuple[npt.NDArray[Any], ...] | None = None
        if not all(p.greedy for p in params):
            self._params = (
                np.array([p.temperature for p in params], np.float32),
                np.array([p.top_k for p in params], np.int64),
                np.array([p.top_p for p in params], np.float32),
                np.array([p.min_p for p in params], np.float32),
                np.array([sequence.seed for sequence in sequences], np.int64),
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

    def settings(self, drafts: list[tuple[int, ...]], upload: Upload) -> tuple[Tensor, ...]:
        """What ops.sample takes after the logits."""
        if self._params is None:
            return _greedy(len(self.sequences), upload.device)
        lengths = [len(sequence.tokens) + len(more) for sequence, more in zip(self.sequences, drafts, strict=True)]
        return (*map(upload.add, self._params), upload.ints(lengths))


class Inputs:
    """What one step's sampling takes besides the logits, as upload holds it. reported: the rows whose log-probabilities
    are wanted, of the logits as the model has them; None: all of these."""

    def __init__(self, batch: Batch, drafts: list[tuple[int, ...]], upload: Upload) -> None:
        sequences, adjusted, wanted = batch.sequences, batch.adjusted(drafts), batch.with_logprobs
        self.settings = batch.settings(drafts, upload)
        self.mask_rows = upload.add(batch.masks.rows) if batch.masks else None
        self.adjustments = _adjustments(sequences, drafts, adjusted, upload) if any(adjusted) else None
        apart = wanted and (any(adjusted) or len(wanted) < len(sequences))
        self.reported = upload.ints(wanted) if apart else None
        self.beams: list[BeamInputs] = []
        for changed in (False, True):
            rows = [row for row in batch.beams if adjusted[row] is changed]
            if rows:
                self.beams.append(BeamInputs(rows, sequences, changed, upload))


class BeamInputs:
    """Of those beams of a batch whose logits are changed, or of those whose are not. picked: None: they are all rows,
    as the model has them."""

    def __init__(self, rows: list[int], sequences: list[Sequence], changed: bool, upload: Upload) -> None:
        self.rows = rows
        beams = [sequences[row] for row in rows]
        self.picked = upload.ints(rows) if changed or len(rows) < len(sequences) else None
        self.adjustments = _adjustments(beams, [()] * len(rows), [True] * len(rows), upload) if changed else None
        self.num_candidates = max(map(_num_candidates, beams))


@lru_cache(maxsize=256)
def _greedy(rows: int, device: torch.device) -> tuple[Tensor, ...]:
    """What ops.sample takes after the logits where all rows are greedy, so that nothing is cut and nothing drawn."""
    zeros, ones = (make(rows, dtype=torch.float32, device=device) for make in (torch.zeros, torch.ones))
    ids = torch.zeros(rows, dtype=torch.int64, device=device)
    return zeros, ids, ones, zeros, ids, ids


def _candidates(logits: Tensor, beams: BeamInputs, masks: BatchMasks | None) -> Iterator[tuple[int, Candidates]]:
    """What each beam's search chooses from, by row. Penalties, masks and the like change log-probabilities here, not
    logits, as transformers has it: what they rule out does not make the rest likelier."""
    values = logits if beams.picked is None else ops.take_rows(logits, beams.picked)
    any_token = torch.zeros(len(beams.rows), dtype=torch.int64, device=logits.device)
    if beams.adjustments is not None:
        _, _, likeliest, logprob = ops.token_logprobs(values, any_token, 1)
        values -= values.gather(1, likeliest) - logprob
        ops.adjust_logits(values, *beams.adjustments)
        if masks is not None:
            masks.forbid(values, beams.rows)
    count = min(beams.num_candidates, logits.shape[1])
    _, _, ids, logprobs = ops.token_logprobs(values, any_token, count)
    if beams.adjustments is not None:
        logprobs = values.gather(1, ids)
    yield from zip(beams.rows, map(Candidates, ids.tolist(), logprobs.tolist()), strict=True)


def _num_candidates(beam: Sequence) -> int:
    """Those that its search looks at, and those which are to be reported."""
    request = beam.request
    return max(num_considered(request.params.beam_width, len(request.stop_ids)), request.params.logprobs or 0)


def _adjustments(
    sequences: list[Sequence], drafts: list[tuple[int, ...]], adjusted: list[bool], upload: Upload
) -> tuple[Tensor, ...]:
    """Penalties, biases, bad words and min_tokens, as ops.adjust_logits takes them after the logits; rows that ask for
    none of these are left as they are."""
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
    return (
        upload.floats(repetition),
        upload.floats(presence),
        upload.floats(frequency),
        upload.add(np.concatenate(histories) if histories else np.empty(0, np.int64)),
        upload.ints(history_start),
        upload.ints(output_start),
        upload.ints(bias_ids),
        upload.floats(bias_values),
        upload.ints(bias_start),
    )


def _completing(sequence: Sequence, drafts: tuple[int, ...]) -> list[int]:
    """The tokens that would complete one of the sequence's bad words after these drafts."""
    words = sequence.request.params.bad_words
    output = [*sequence.output, *drafts] if any(len(word) > 1 for word in words) else []
    return [last for *before, last in words if before == output[len(output) - len(before) :]]
