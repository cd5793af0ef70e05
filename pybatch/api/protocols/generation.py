"""What a request asks of the engine, whatever protocol it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pybatch.api.inputs import Prompt


@dataclass(frozen=True, slots=True)
class Generation:
    """prompts: more than one where a request may hold several. params: fields of SamplingParams that it sets.
    priority: among interactive requests; a lower one comes first. user: in whose name it asks, if it says so."""

    prompts: tuple[Prompt, ...]
    params: Mapping[str, Any]
    priority: int = 0
    user: str | None = None
