"""Sampling against its definition written out in float64, with a Philox of its own."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rows import apart, assert_rows_stand_alone, same_bits, threads
from torch import Tensor

from pybatch import ops

MASK = 0xFFFFFFFF


def philox4x32(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 (Salmon et al. 2011)."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & MASK, (a >> 32) ^ c3 ^ k1, a & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def exponential(word: int) -> float:
    return -math.log1p(-(word + 0.5) / 2**32)


def times(seed: int, position: int, ids: Iterable[int]) -> list[float]:
    """The tokens' exponential variates, as csrc/pybatch/sampling.h makes them."""
    key = seed & MASK, seed >> 32 & MASK

    def words(index: int, kind: int) -> tuple[int, ...]:
        return philox4x32((position & MASK, position >> 32 & MASK, index, kind), key)

    found = []
    for token in ids:
        time, who, *_ = words(token // 256 * 16 + token % 16, 0)
        rest = 0.0 if who >> 28 == token // 16 % 16 else exponential(words(token, 1)[0])
        found.append(exponential(time) / 16 + rest)
    return found


# Known answers published with Random123.
@pytest.mark.host
@pytest.mark.parametrize(
    ("counter", "key", "wanted"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((MASK,) * 4, (MASK,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_reference_generator_gives_the_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    assert philox4x32(counter, key) == wanted


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seeds: Tensor | int = 0,
    positions: Tensor | int = 0,
    masks: Tensor | None = None,
    mask_rows: Tensor | None = None,
) -> Tensor:
    rows = len(logits)

    def column(value: Tensor | float, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(value, dtype=dtype).expand(rows).contiguous()

    return ops.sample(
        logits,
        column(temperature, torch.float32),
        column(top_k, torch.int64),
        column(top_p, torch.float32),
        column(min_p, torch.float32),
        column(seeds, torch.int64),
        column(positions, torch.int64),
        masks=masks,
        mask_rows=mask_rows,
    )


@settings(max_examples=50, deadline=None, derandomize=True)
@given(seed=st.integers(-(2**63), 2**63 - 1), position=st.integers(-(2**63), 2**63 - 1))
def test_even_logits_show_whose_variate_is_least(seed: int, position: int) -> None:
    vocab = 700
    assert sample(torch.zeros(1, vocab), seeds=seed, positions=position) == np.argmin(
        times(seed, position, range(vocab))
    )


def clean(logits: Tensor) -> np.ndarray:
    """In float64, with NaN as -inf and +inf as the largest float32."""
    return np.nan_to_num(logits.numpy().astype(np.float64), nan=-np.inf, posinf=3.4028234663852886e38, neginf=-np.inf)


ROUNDING = 1e-5  # how far a fp32 sum of weights may be off, relatively


def assert_is_the_draw(
    token: int, logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float, seed: int, position: int
) -> None:
    """token has the least variate / probability of the cut softmax, or is within rounding of it."""
    x = clean(logits)
    order = np.lexsort((np.arange(len(x)), -x))
    weights = np.exp((x - x.max()) / temperature)
    if top_k > 0:
        order = order[:top_k]
    mass = np.cumsum(weights[order])
    possible = []
    for p in {top_p * (1 - ROUNDING), min(1.0, top_p * (1 + ROUNDING))} if top_p < 1 else {1.0}:
        count = len(order) if top_p == 1 else np.searchsorted(mass, p * mass[-1]) + 1
        for m in {min_p * (1 - ROUNDING), min(1.0, min_p * (1 + ROUNDING))}:
            kept = np.zeros_like(weights)
            kept[order[:count]] = weights[order[:count]]
            kept[weights < m] = 0
            possible.append(kept)
    for kept in possible:
        ids = np.flatnonzero(kept > 1e-30)
        scores = np.array(times(seed, position, ids.tolist())) / kept[ids]
        if kept[token] > 0 and scores[ids == token] <= scores.min() * (1 + ROUNDING):
            return
    raise AssertionError(f"token {token} is not drawn")


def logits_of(kind: str, vocab: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(vocab, generator=generator) * 3
    if kind == "ties":
        return x.round()
    if kind == "equal":
        return torch.full((vocab,), -2.5)
    if kind == "peaked":
        return x * 30
    if kind == "banned":  # as a grammar or a bias of -inf leaves them
        x[torch.rand(vocab, generator=generator) < 0.9] = -torch.inf
        x[seed % vocab] = 1.0
    if kind == "signed zeros":
        return torch.where(x > 0, 0.0, -0.0)
    return x


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["normal", "ties", "equal", "peaked", "banned", "signed zeros"]),
    vocab=st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 5000])),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.01, 0.7, 1.0, 5.0]),
    top_k=st.sampled_from([-1, 0, 1, 2, 17, 50, 2000]),
    top_p=st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)
def test_draws(kind: str, vocab: int, seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = logits_of(kind, vocab, seed)
    positions = torch.arange(4)
    tokens = sample(logits.repeat(4, 1), temperature, top_k, top_p, min_p, seed, positions)
    t, p, m = (float(np.float32(value)) for value in (temperature, top_p, min_p))
    for position, token in zip(positions.tolist(), tokens.tolist(), strict=True):
        assert_is_the_draw(token, logits, t, top_k, p, m, seed, position)


CUTS = [(0, 1.0, 0.0), (8, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.1)]


def cut_softmax(logits: Tensor, temperature: float, top_k: int, top_p: float, min_p: float) -> Tensor:
    probabilities = torch.softmax(logits.double() / temperature, 0)
    ordered, order = probabilities.sort(descending=True, stable=True)
    count = min(
        top_k or len(logits), int((ordered.cumsum(0) < top_p).sum()) + 1, int((ordered >= min_p * ordered[0]).sum())
    )
    kept = torch.zeros_like(probabilities)
    kept[order[:count]] = ordered[:count] / ordered[:count].sum()
    return kept


def assert_counts_follow(observed: Tensor, probabilities: Tensor) -> None:
    expected = probabilities * observed.sum()
    assert observed[expected == 0].sum() == 0
    kept = expected > 0
    chi_square = float(((observed.double() - expected)[kept] ** 2 / expected[kept]).sum())
    freedom = int(kept.sum()) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("vocab", [50, 600])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
def test_draws_follow_the_softmax(top_k: int, top_p: float, min_p: float, vocab: int) -> None:
    draws = 40_000
    logits = logits_of("normal", vocab, 3) / (1 if vocab == 50 else 3)  # else most are never seen
    index = torch.arange(draws)
    tokens = sample(logits.repeat(draws, 1), 1.5, top_k, top_p, min_p, seeds=index // 200, positions=index % 200)
    assert_counts_follow(
        torch.bincount(tokens, minlength=vocab), cut_softmax(logits, 1.5, top_k, float(np.float32(top_p)), min_p)
    )


def test_draws_at_successive_positions_do_not_tell_of_each_other() -> None:
    logits = torch.tensor([0.3, 0.0, -0.4, 0.1]).repeat(64)[:250]  # tokens of one group and of several
    tokens = sample(logits.repeat(40_001, 1), seeds=5, positions=torch.arange(40_001)) % 4
    pairs = torch.bincount(tokens[:-1] * 4 + tokens[1:], minlength=16)
    single = torch.softmax(logits.double(), 0)
    each = torch.stack([single[i::4].sum() for i in range(4)])
    assert_counts_follow(pairs, torch.outer(each, each).flatten())


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
def test_two_distributions_draw_the_same_token_as_often_as_a_common_race_makes_them(
    top_k: int, top_p: float, min_p: float
) -> None:
    """The sum over i of 1 / sum_j max(p_j / p_i, q_j / q_i), which is (1 - d) / (1 + d) or more, where d is their total
    variation distance and 1 - d the most that any way of drawing attains (Daliri, Musco and Suresh 2024)."""
    draws, vocab = 20_000, 300
    generator = torch.Generator().manual_seed(1)
    first = torch.randn(vocab, generator=generator) * 2
    second = first + torch.randn(vocab, generator=generator) * 0.3
    index = torch.arange(draws)
    a, b = (
        sample(x.repeat(draws, 1), 1.0, top_k, top_p, min_p, seeds=index // 100, positions=index % 100)
        for x in (first, second)
    )
    p, q = (cut_softmax(x, 1.0, top_k, float(np.float32(top_p)), min_p) for x in (first, second))
    common = torch.nonzero((p > 0) & (q > 0))[:, 0]
    expected = sum(1 / float(torch.maximum(p / p[i], q / q[i]).sum()) for i in common)
    agreeing = float((a == b).double().mean())
    distance = 1 - float(torch.minimum(p, q).sum())
    assert abs(agreeing - expected) < 4 * math.sqrt(expected / draws)
    assert (1 - distance) / (1 + distance) <= expected <= 1 - distance


def test_greedy_takes_the_largest_and_of_those_the_lowest_id() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-0.0, 0.0, -1.0, 0.0], [5.0, 3e38, 3e38, -torch.inf]])
    assert sample(logits, temperature=0.0).tolist() == [1, 0, 1]


@pytest.mark.parametrize("temperature", [0.0, 1.0, math.inf])
def test_nan_counts_as_minus_infinity(temperature: float) -> None:
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor(
        [[nan, -inf, -7.0, nan], [nan, nan, nan, nan], [-inf, -inf, -inf, -inf], [nan, inf, 3.0, nan]]
    )
    tokens = sample(logits, temperature, top_p=0.99, positions=torch.arange(4)).tolist()
    assert tokens[:3] == [2, -1, -1], "where all are -inf none can be drawn"
    assert tokens[3] in ((-1, 2) if temperature == math.inf else (-1,)), "+inf is the largest, and no number"


def test_a_tiny_temperature_is_greedy() -> None:
    assert sample(torch.tensor([[1.0, 1.0001, 0.5]]), temperature=1e-42) == 1


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [(0, 1.0, 0.0), (40, 0.9, 0.0), (0, 0.9, 0.05)])
def test_sampled_rows_stand_alone(top_k: int, top_p: float, min_p: float) -> None:
    logits = torch.stack([logits_of("normal", 3001, seed) for seed in range(9)])
    logits[4] = torch.nan
    # One key per row, taken along with the row: its last column, which no draw can reach.
    logits[:, -1] = -1000 - torch.arange(9)

    def draw(rows: Tensor) -> Tensor:
        return sample(rows, 0.8, top_k, top_p, min_p, seeds=rows[:, -1].long(), positions=5)[:, None]

    assert_rows_stand_alone(draw, logits)


# ---- masks ----


def packed(allowed: Tensor, *, beyond: int = 0) -> Tensor:
    """allowed [rows, vocab] bool as masks, whose bits past the vocabulary are `beyond`."""
    padded = torch.nn.functional.pad(allowed, (0, -allowed.shape[1] % 32), value=bool(beyond))
    return torch.from_numpy(np.packbits(padded.numpy(), axis=1, bitorder="little").view(np.int32))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["normal", "ties", "equal", "banned", "signed zeros"]),
    vocab=st.one_of(st.integers(1, 100), st.sampled_from([511, 512, 513, 5000])),
    share=st.sampled_from([0.0, 0.001, 0.3, 0.999, 1.0]),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    top_k=st.sampled_from([0, 2, 50]),
    top_p=st.sampled_from([0.5, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.3]),
    beyond=st.integers(0, 1),
)
def test_a_forbidden_token_counts_as_one_of_no_probability(
    kind: str,
    vocab: int,
    share: float,
    seed: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    beyond: int,
) -> None:
    rows = 4
    logits = torch.stack([logits_of(kind, vocab, seed + row) for row in range(rows)])
    logits[0, seed % vocab] = torch.nan
    allowed = torch.rand(rows, vocab, generator=torch.Generator().manual_seed(seed)) < share
    allowed[3] = True
    positions = torch.arange(rows)
    # Row r of the logits has mask rows[r]; the last row has none.
    rows_of_masks = torch.tensor([1, 2, 0, -1])
    masks = packed(allowed[:3][rows_of_masks[:3].argsort()], beyond=beyond)
    before = logits.clone()
    tokens = sample(logits, temperature, top_k, top_p, min_p, seed, positions, masks=masks, mask_rows=rows_of_masks)
    assert torch.equal(logits.nan_to_num(7), before.nan_to_num(7)), "the logits are only read"
    banned = logits.masked_fill(~allowed, -torch.inf)
    assert tokens.tolist() == sample(banned, temperature, top_k, top_p, min_p, seed, positions).tolist()


def test_a_mask_hides_even_infinite_logits_and_may_leave_nothing() -> None:
    logits = torch.tensor([[torch.inf, 1.0, torch.nan], [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    masks = packed(torch.tensor([[False, True, True], [False, False, False]]), beyond=1)
    for temperature in (0.0, 1.0):
        rows = torch.tensor([0, 1, -1])
        assert sample(logits, temperature, masks=masks, mask_rows=rows, top_k=1).tolist() == [1, -1, 0]


def test_masked_rows_stand_alone() -> None:
    logits = torch.stack([logits_of("normal", 3001, seed) for seed in range(9)])
    logits[:, -1] = -1000 - torch.arange(9)  # each row's key
    masks = packed(torch.rand(9, 3001, generator=torch.Generator().manual_seed(0)) < 0.4)

    def draw(rows: Tensor) -> Tensor:
        keys = -1000 - rows[:, -1].long()
        return sample(rows, 0.8, 40, 0.9, seeds=keys, positions=5, masks=masks, mask_rows=keys)[:, None]

    assert_rows_stand_alone(draw, logits)


# ---- scale_logits ----


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(0, 4),
    vocab=st.sampled_from([1, 5, 16, 300, 9000, 20011]),
    scale=st.sampled_from([1.0, 0.0625, 3.0]),
    soft_cap=st.sampled_from([0.0, 30.0, 0.5]),
    spread=st.sampled_from([1.0, 100.0]),
)
def test_scale_logits(rows: int, vocab: int, scale: float, soft_cap: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocab)
    logits = apart(torch.randn(rows, vocab, generator=generator) * spread)
    wanted = logits.double() * scale
    if soft_cap:
        wanted = soft_cap * (wanted / soft_cap).tanh()
    alone = [ops.scale_logits(row[None].clone(), scale, soft_cap)[0] for row in logits]
    assert ops.scale_logits(logits, scale, soft_cap) is logits
    torch.testing.assert_close(logits.double(), wanted, rtol=1e-6, atol=1e-6 * (soft_cap or 1))
    for row, expected in zip(logits, alone, strict=True):
        assert same_bits(row, expected)


def test_a_soft_cap_keeps_what_is_not_finite_within_it() -> None:
    capped = ops.scale_logits(torch.tensor([[torch.inf, -torch.inf, torch.nan, 1e30]]), 1.0, 20.0)[0].tolist()
    assert capped[0] == capped[3] == 20.0
    assert capped[1] == -20.0
    assert capped[2] != capped[2]


# ---- adjust_logits ----


def ragged(lists: list[list]) -> Tensor:
    return torch.tensor([0, *np.cumsum([len(x) for x in lists])], dtype=torch.int64)


def flat(lists: list[list], dtype: torch.dtype) -> Tensor:
    return torch.tensor([x for row in lists for x in row], dtype=dtype)


def adjust(
    logits: Tensor,
    prompts: list[list[int]],
    outputs: list[list[int]],
    penalties: list[tuple[float, float, float]],
    biases: list[dict[int, float]],
) -> Tensor:
    logits = logits.clone()
    history = [prompt + output for prompt, output in zip(prompts, outputs, strict=True)]
    start = ragged(history)
    repetition, presence, frequency = torch.tensor(penalties, dtype=torch.float32).view(-1, 3).t().contiguous()
    ops.adjust_logits(
        logits,
        repetition,
        presence,
        frequency,
        flat(history, torch.int64),
        start,
        start[:-1] + torch.tensor([len(prompt) for prompt in prompts], dtype=torch.int64),
        flat([list(b) for b in biases], torch.int64),
        flat([list(b.values()) for b in biases], torch.float32),
        ragged([list(b) for b in biases]),
    )
    return logits


def adjusted(
    logits: Tensor, prompt: list[int], output: list[int], penalties: tuple[float, float, float], bias: dict[int, float]
) -> Tensor:
    x = logits.double()
    for token, value in bias.items():
        x[token] += value
    repetition, presence, frequency = penalties
    for token in {*prompt, *output}:
        x[token] = x[token] / repetition if x[token] > 0 else x[token] * repetition
    for token in set(output):
        x[token] -= presence + frequency * output.count(token)
    return x


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), rows=st.integers(0, 6), vocab=st.integers(1, 40), seed=st.integers(0, 99))
def test_adjust_logits(data: st.DataObject, rows: int, vocab: int, seed: int) -> None:
    tokens = st.integers(0, vocab - 1)
    texts = st.lists(st.lists(tokens, max_size=30), min_size=rows, max_size=rows)
    prompts, outputs = data.draw(texts), data.draw(texts)
    strength = st.sampled_from([0.0, 0.5, -0.75, 2.0])
    penalties = [
        (data.draw(st.sampled_from([1.0, 1.3, 0.5])), data.draw(strength), data.draw(strength)) for _ in prompts
    ]
    biases = data.draw(
        st.lists(
            st.dictionaries(tokens, st.sampled_from([-100.0, 0.25, 5.0]), max_size=5), min_size=rows, max_size=rows
        )
    )
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 4
    actual = adjust(logits, prompts, outputs, penalties, biases)
    for i in range(rows):
        wanted = adjusted(logits[i], prompts[i], outputs[i], penalties[i], biases[i])
        torch.testing.assert_close(actual[i].double(), wanted, rtol=1e-6, atol=1e-6)


def test_a_bias_of_minus_infinity_bans_a_token() -> None:
    actual = adjust(torch.ones(1, 3), [[1]], [[1]], [(1.2, 0.5, 0.5)], [{1: -torch.inf}])
    assert actual.tolist() == [[1.0, -torch.inf, 1.0]]


def test_neutral_penalties_leave_every_bit() -> None:
    logits = torch.randn(5, 300)
    histories = [list(range(i, 300, 7)) for i in range(5)]
    assert torch.equal(adjust(logits, histories, histories, [(1.0, 0.0, 0.0)] * 5, [{}] * 5), logits)


def test_adjusted_rows_stand_alone() -> None:
    rows = 8
    logits = torch.randn(rows, 1000, generator=torch.Generator().manual_seed(0))
    prompts = [[(7 * i * i + j * j) % 1000 for j in range(900)] for i in range(rows)]
    outputs = [prompt[::3] for prompt in prompts]
    penalties = [(1.1 + i / 100, 0.3, 0.2 * i) for i in range(rows)]
    biases = [{i: 1.5} for i in range(rows)]
    with threads(2):
        whole = adjust(logits, prompts, outputs, penalties, biases)
    with threads(1):
        assert torch.equal(adjust(logits, prompts, outputs, penalties, biases), whole)
    for i in range(rows):
        alone = adjust(
            logits[i : i + 1], prompts[i : i + 1], outputs[i : i + 1], penalties[i : i + 1], biases[i : i + 1]
        )
        assert torch.equal(alone[0], whole[i])


# ---- token_logprobs ----


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    data=st.data(),
    kind=st.sampled_from(["normal", "ties", "equal", "peaked", "banned", "signed zeros"]),
    rows=st.integers(0, 3),
    vocab=st.one_of(st.integers(1, 70), st.sampled_from([1100, 5000])),
    seed=st.integers(0, 99),
)
def test_token_logprobs(data: st.DataObject, kind: str, rows: int, vocab: int, seed: int) -> None:
    logits = torch.empty(rows, vocab)
    for i in range(rows):
        logits[i] = logits_of(kind, vocab, seed + i)
    num_top = data.draw(st.integers(0, min(vocab, 30))) if vocab > 70 else data.draw(st.integers(0, vocab))
    tokens = torch.tensor([data.draw(st.integers(0, vocab - 1)) for _ in range(rows)], dtype=torch.int64)
    logprob, rank, top_ids, top_logprobs = ops.token_logprobs(logits, tokens, num_top)
    wanted = torch.log_softmax(logits.double(), 1)
    order = logits.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(top_ids, order[:, :num_top])
    torch.testing.assert_close(top_logprobs.double(), wanted.gather(1, top_ids), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logprob.double(), wanted.gather(1, tokens[:, None])[:, 0], rtol=1e-6, atol=1e-6)
    assert torch.equal(rank, (order == tokens[:, None]).long().argmax(1) + 1 if rows else rank)


def test_all_of_a_large_vocabulary_in_order() -> None:
    logits = torch.randn(1, 49152, generator=torch.Generator().manual_seed(0))
    _, _, top_ids, _ = ops.token_logprobs(logits, torch.tensor([0]), 49152)
    assert torch.equal(top_ids, logits.sort(dim=1, descending=True, stable=True).indices)


def test_logprobs_of_what_is_no_number() -> None:
    nan, inf = torch.nan, torch.inf
    logits = torch.tensor([[nan, 0.0, -inf], [nan, nan, -inf], [inf, 0.0, nan]])
    logprob, rank, top_ids, top_logprobs = ops.token_logprobs(logits, torch.tensor([0, 0, 0]), 3)
    assert logprob.tolist() == [-inf, -inf, 0.0]
    assert rank.tolist() == [2, 1, 1]
    assert top_ids.tolist() == [[1, 0, 2], [0, 1, 2], [0, 1, 2]]
    assert top_logprobs.tolist() == [[0.0, -inf, -inf], [-inf] * 3, [0.0, torch.finfo(torch.float32).min, -inf]]


def test_logprob_rows_stand_alone() -> None:
    logits = torch.stack([logits_of("ties", 3001, seed) for seed in range(7)])
    logits[2] = torch.nan

    def logprobs(rows: Tensor) -> Tensor:
        logprob, rank, top_ids, top_logprobs = ops.token_logprobs(rows, torch.full((len(rows),), 17), 5)
        return torch.cat([logprob[:, None].double(), rank[:, None], top_ids, top_logprobs], dim=1)

    assert_rows_stand_alone(logprobs, logits)


def test_logits_may_be_strided() -> None:
    logits = torch.randn(3, 100)
    assert torch.equal(sample(apart(logits), positions=3), sample(logits, positions=3))
