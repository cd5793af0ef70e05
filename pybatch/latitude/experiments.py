"""Variants compared, as Latitude shows them: traces that bear their variant, scores, and an experiment over both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pybatch.latitude.project import Project

AT_ONCE = 8  # requests
COMPARISON, VARIANT = "comparison", "variant"  # of a trace's metadata


@dataclass(frozen=True)
class ScoredRow:
    """A row's answer by a variant, with its score. trace_id: as `trace_id` gives it. value: 0 to 1. seconds, tokens,
    dollars: what scoring took."""

    variant: str
    trace_id: str
    value: float
    passed: bool
    scorer: str
    feedback: str = ""
    seconds: float = 0.0
    tokens: int = 0
    dollars: float = 0.0


def labels(comparison: str, variant: str) -> dict[str, str]:
    """What traces of a variant have in their metadata, by which the experiment finds them."""
    return {COMPARISON: comparison, VARIANT: variant}


def post_comparison(
    project: Project, comparison: str, variants: Sequence[str], scored: Iterable[ScoredRow], *, description: str = ""
) -> str:
    """Posts the scores, and an experiment with a variant for each name, the first of which is the baseline.

    comparison: its name, which the traces have too. Returns the experiment's slug. Raises LatitudeError; the scores
    that are posted by then stay.
    """
    scored = list(scored)
    for row in scored:
        if row.variant not in variants:
            raise ValueError(f"scored: expected a variant of {', '.join(variants)}, got {row.variant!r}")
    post_scores(project, comparison, scored)
    return project.create_experiment(
        comparison, {name: labels(comparison, name) for name in variants}, description=description
    )


def post_scores(project: Project, comparison: str, scored: Iterable[ScoredRow]) -> None:
    """Some at a time. Raises LatitudeError."""

    def post(row: ScoredRow) -> None:
        project.score(
            row.trace_id,
            row.value,
            passed=row.passed,
            source=row.scorer,
            feedback=row.feedback,
            seconds=row.seconds,
            tokens=row.tokens,
            dollars=row.dollars,
            metadata=labels(comparison, row.variant),
        )

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(post, scored):
            pass
