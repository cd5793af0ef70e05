from __future__ import annotations

from typing import Any

import pytest

from pybatch.engine import EngineConfig


@pytest.mark.parametrize("given", [{"alice": 2, "bob": 0.5}, '{"alice": 2, "bob": 0.5}'])
def test_weights_are_a_dict_or_its_text(given: Any) -> None:
    config = EngineConfig(user_weights=given)
    assert config.weights == {"alice": 2.0, "bob": 0.5}
    assert EngineConfig(user_weights=config.user_weights) == config
    assert EngineConfig().weights == {}


@pytest.mark.parametrize("given", [{"a": 0}, {"a": "2"}, {"a": True}, {"a": float("inf")}, {1: 2.0}, "alice", "[1]", 3])
def test_others_are_refused(given: Any) -> None:
    with pytest.raises(ValueError, match=r"^user_weights: expected a dict of users and numbers above 0, or"):
        EngineConfig(user_weights=given)
