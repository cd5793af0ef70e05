"""From logits to tokens and their probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from pybatch.ops.library import kernels


def scale_logits(logits: Tensor, scale: float = 1.0, soft_cap: float = 0.0) -> Tensor:
    """Multiplies logits [R, vocab] float32 by scale in place, and with a soft_cap c (0: none) makes them
    c * tanh(logits / c). Returns logits."""
    kernels.scale_logits.default(logits, scale, soft_cap)
    return logits


def adjust_logits(
    logits: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    history: Tensor,
    history_start: Tensor,
    output_start: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    bias_start: Tensor,
) -> None:
    """Adds logit biases, then applies repetition, presence and frequency penalties, in place.

    logits: [R, vocab] float32; repetition, presence, frequency: [R] float32 (1, 0, 0: none); history: [H] int64, each
    row's prompt and then output ids, row r at history_start[r]:history_start[r+1] ([R+1] int64), its output from index
    output_start[r] ([R] int64) on; bias_ids [B] int64, bias_values [B] float32, row r at bias_start[r]:bias_start[r+1].
    """
    kernels.adjust_logits.default(
        logits, repetition, presence, frequency, history, history_start, output_start, bias_ids, bias_values, bias_start
    )


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    masks: Tensor | None = None,
    mask_rows: Tensor | None = None,
) -> Tensor:
    """One token id per row, [R] int64; -1 where its logit is not finite, or the row's mask allows no token.

    logits: [R, vocab] float32; temperature: [R] float32, 0: the largest logit, lowest id first; top_k: [R] int64, 0 or
    less: all; top_p: [R] float32 in (0, 1]; min_p: [R] float32 in [0, 1]; seeds, positions: [R] int64, key and counter
    of the Philox4x32-10 generator (Salmon et al. 2011), so that a draw depends on them and the row alone. It is a race:
    the token with the least exponential variate / probability wins, so that rows with the same seed and position mostly
    draw the same token where their distributions are alike (Daliri, Musco and Suresh 2024).
    masks: [M, ceil(vocab / 32)] int32, of which bit i % 32 of word i / 32 says whether token i may be drawn; any other
    counts as one of logit -inf. mask_rows: [R] int64, which mask is the row's, negative: none.
    """
    out = torch.empty(logits.shape[:1], dtype=torch.int64, device=logits.device)
    kernels.sample.default(logits, temperature, top_k, top_p, min_p, seeds, positions, masks, mask_rows, out)
    return out


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_softmax(logits) at tokens and at the num_top largest.

    logits: [R, vocab] float32; tokens: [R] int64. Returns logprob [R] float32, rank [R] int64 (1: the largest; ties by
    id), top_ids [R, num_top] int64 in descending order, top_logprobs [R, num_top] float32.
    """
    rows, device = logits.shape[:1], logits.device
    logprob = torch.empty(rows, dtype=torch.float32, device=device)
    rank = torch.empty(rows, dtype=torch.int64, device=device)
    top_ids = torch.empty(*rows, num_top, dtype=torch.int64, device=device)
    top_logprobs = torch.empty(*rows, num_top, dtype=torch.float32, device=device)
    kernels.token_logprobs.default(logits, tokens, logprob, rank, top_ids, top_logprobs)
    return logprob, rank, top_ids, top_logprobs
