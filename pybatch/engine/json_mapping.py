"""Arguments that are a dict, or one as JSON where a command gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def as_mapping(given: Any) -> Mapping[Any, Any] | None:
    """None if it is neither."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError:
            return None
    return given if isinstance(given, Mapping) else None
