from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pybatch
from pybatch.engine import EngineConfig
from pybatch.engine.scheduling.policies import POLICIES, Continuous, Dynamic, Micro, Policy, Static, as_policy

sizes = st.none() | st.integers(1, 1000)
policies = st.one_of(
    st.just(Continuous()),
    st.builds(Static, sizes, st.booleans()),
    st.builds(Dynamic, sizes, st.floats(0, 1e6)),
    st.builds(Micro, sizes),
)


@given(policies)
def test_a_policy_is_known_by_its_text(policy: Policy) -> None:
    assert as_policy(str(policy)) == policy == as_policy(policy)


def test_a_policy_is_text_or_an_object() -> None:
    assert [as_policy(name) for name in POLICIES] == [Continuous(), Static(), Dynamic(), Micro()]
    assert as_policy(" static( batch_size = 32, by_length=False )") == Static(32, by_length=False)
    config = EngineConfig(policy=pybatch.Static(batch_size=32, by_length=False))
    assert config == EngineConfig(policy="static(by_length=False, batch_size=32)")
    assert config.policy == "static(batch_size=32, by_length=False)"
    assert config.batching == Static(32, by_length=False)
    assert EngineConfig(policy=pybatch.Static()).policy == "static"


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("greedy", "policy: expected one of 'continuous', 'static', 'dynamic', 'micro', with settings as in"),
        (None, "got None"),
        ("static(32)", "got 'static(32)'"),
        ("static(batch_size=open('x'))", "expected one of 'continuous'"),
        ("(" * 10_000, "expected one of 'continuous'"),
        ("static(**x)", "expected one of 'continuous'"),
        ("static(batch=3)", "policy: static: expected batch_size or by_length, got 'batch'"),
        ("continuous(batch_size=3)", "policy: continuous: expected no settings, got 'batch_size'"),
        ("static(batch_size=0)", "policy: static: batch_size: expected a positive integer or None, got 0"),
        ("static(batch_size=True)", "policy: static: batch_size: expected a positive integer or None, got True"),
        ("static(by_length=1)", "policy: static: by_length: expected True or False, got 1"),
        ("dynamic(max_wait=-1)", "policy: dynamic: max_wait: expected a number of seconds, at least 0, got -1"),
        ("dynamic(max_wait=1e999)", "max_wait: expected a number of seconds, at least 0, got inf"),
        ("dynamic(max_batch=257)", "policy: expected at most max_num_seqs = 256 requests a batch, got dynamic"),
        ("micro(micro_batch='4')", "policy: micro: micro_batch: expected a positive integer or None, got '4'"),
    ],
)
def test_a_bad_policy_is_refused_by_name(policy: Any, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        EngineConfig(policy=policy)


def test_a_batch_fits_the_device() -> None:
    config = EngineConfig(policy="dynamic(max_batch=65)")
    assert config.on("cuda").batching.size == 65
    with pytest.raises(ValueError, match=r"^policy: expected at most max_num_seqs = 64 requests a batch"):
        config.on("cpu")
    with pytest.raises(ValueError, match=r"^policy: expected at most max_num_seqs = 64 requests a batch"):
        EngineConfig(policy="dynamic(max_batch=65)", max_num_seqs=64)


def test_more_requests_are_ahead_where_they_are_grouped() -> None:
    assert EngineConfig(max_num_seqs=4).requests_ahead == 8
    assert EngineConfig(max_num_seqs=4, policy="static").requests_ahead == 32
    assert EngineConfig(max_num_seqs=4, policy="static(by_length=False)").requests_ahead == 8
