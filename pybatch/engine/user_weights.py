"""The shares of users, as they are given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pybatch.engine.json_mapping import as_mapping


def is_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def read_weights(given: Mapping[str, float] | str) -> dict[str, float]:
    """By user, from a dict or one as JSON. Raises ValueError."""
    weights = as_mapping(given)
    if weights is None or not all(isinstance(user, str) and is_weight(weight) for user, weight in weights.items()):
        raise ValueError(
            'user_weights: expected a dict of users and numbers above 0, or one as JSON, such as {"alice": 2.0}; got '
            f"{given!r:.200}"
        )
    return {user: float(weight) for user, weight in weights.items()}
