from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pybatch.tune.output_lengths import OutputLengths


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 60))
def test_of_answers_that_all_ended_it_is_their_mean(lengths: list[int], limit: int) -> None:
    known = OutputLengths((length, True) for length in lengths)
    assert known.expected(limit) == pytest.approx(np.minimum(lengths, limit).mean())


@given(st.lists(st.tuples(st.integers(1, 50), st.booleans())), st.integers(1, 200))
def test_quantiles_and_mean_belong_together(observed: list[tuple[int, bool]], limit: int) -> None:
    known = OutputLengths(observed)
    shares = (np.arange(2000) + 0.5) / 2000
    lengths = [known.quantile(share, limit) for share in shares]
    assert lengths == sorted(lengths)
    assert 1 <= lengths[0] <= lengths[-1] <= limit
    assert np.mean(lengths) == pytest.approx(known.expected(limit), rel=0.02, abs=0.05 if limit < 50 else 0.2)


def test_answers_that_were_cut_off_do_not_count_as_short_ones() -> None:
    chosen = random.Random(0)
    lengths = [1 + int(chosen.expovariate(1 / 100)) for _ in range(2000)]
    cuts = [chosen.randrange(1, 200) for _ in lengths]
    known = OutputLengths((min(length, cut), length <= cut) for length, cut in zip(lengths, cuts, strict=True))
    for limit in (50, 150, 1000):
        assert known.expected(limit) == pytest.approx(np.minimum(lengths, limit).mean(), rel=0.07)


def test_where_none_ended_outputs_fill_their_limit() -> None:
    assert OutputLengths([(10, False)] * 5).expected(64) == 64
    assert OutputLengths([]).expected(64) == 64
    assert OutputLengths([]).quantile(0.5, 64) == 64
