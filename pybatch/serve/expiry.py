"""OpenAI's expires_after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type
from pybatch.api.protocols.request_error import RequestError

SHORTEST, LONGEST = 3_600, 2_592_000  # seconds: an hour, 30 days


def seconds_of(name: str, policy: Any) -> int | None:
    """How long a file is kept from when it was created. name: of the field. Raises RequestError."""
    if policy is None:
        return None
    expect_fields(expect_type(name, policy, Mapping, "an object"), ("anchor", "seconds"), {})
    if expect_given(policy, "anchor") != "created_at":
        raise RequestError(f"{name}.anchor: expected 'created_at', got {policy['anchor']!r:.80}", "invalid_value", name)
    seconds: int = expect_type(f"{name}.seconds", expect_given(policy, "seconds"), int, "a number of seconds")
    if not SHORTEST <= seconds <= LONGEST:
        raise RequestError(
            f"{name}.seconds: expected {SHORTEST:,} to {LONGEST:,}, got {seconds:,}", "invalid_value", name
        )
    return seconds
