from __future__ import annotations

import pytest

from pybatch.engine.speculation.acceptance import Acceptance


def test_it_is_what_was_thought_until_something_is_seen() -> None:
    seen = Acceptance(0.3, decay=0.9)
    assert seen.share == pytest.approx(0.3)
    seen.observe(0, wrong=False)
    assert seen.share == pytest.approx(0.3)


def test_it_follows_what_is_seen_and_forgets_what_was() -> None:
    seen = Acceptance(0.5, decay=0.9)
    for _ in range(20):
        seen.observe(3, wrong=True)
    assert seen.share == pytest.approx(0.75, abs=0.1)
    seen.observe(40, wrong=False)
    assert seen.share > 0.98
    for _ in range(40):
        seen.observe(0, wrong=True)
    assert seen.share < 0.02


def test_the_more_was_seen_the_closer_are_caution_and_hope() -> None:
    seen = Acceptance(0.5, decay=1.0)
    assert seen.hopeful_share == 1.0
    apart = []
    for _ in range(5):
        for _ in range(20):
            seen.observe(1, wrong=True)
        assert 0 < seen.cautious_share < seen.share < seen.hopeful_share < 1
        apart.append(seen.hopeful_share - seen.cautious_share)
    assert apart == sorted(apart, reverse=True)
