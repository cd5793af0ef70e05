"""What a job's traces bear beside what happened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pybatch.latitude.access import expect_slug


@dataclass(frozen=True)
class Tracing:
    """Where a job's traces go, and how they are found there.

    project: its slug. session, metadata's values: text, with {field} where a row's field goes; a row without the field
    is without it. Latitude compares experiments by sessions: where there is no session, each row is one of its own.
    tags: of all rows. prompt, prompt_version: the prompt's name, and its version. content: prompts and answers are sent
    too; else nothing of what they say leaves the machine.
    """

    project: str
    session: str | None = None
    tags: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    prompt: str | None = None
    prompt_version: str | None = None
    content: bool = False

    def __post_init__(self) -> None:
        expect_slug("latitude", "a project", self.project)

    @classmethod
    def parse_metadata(cls, pairs: Iterable[str]) -> dict[str, str]:
        """Of NAME=TEXT each. Raises ValueError."""
        split = [pair.partition("=") for pair in pairs]
        for name, equals, text in split:
            if not (name and equals):
                raise ValueError(f"latitude_metadata: expected NAME=TEXT, got {name + equals + text!r:.80}")
        return {name: text for name, _, text in split}


def cost_attributes(dollars: float | None) -> dict[str, Any]:
    """Of a span, in dollars; None: not known."""
    return {} if dollars is None else {"gen_ai.usage.total_cost": dollars, "latitude.cost.source": "user"}
