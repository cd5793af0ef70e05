"""A history as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from pybatch.jobs.report.report import template, write_page
from pybatch.prompts.history.store import PromptRun
from pybatch.prompts.history.trends import colors, trends


def write_history(path: str, runs: Sequence[PromptRun]) -> None:
    """All at once: a file that is there is replaced. Raises OSError, with the path."""
    names = dict.fromkeys(run.prompt for run in runs)
    by_prompt = {name: [run for run in runs if run.prompt == name] for name in names}
    page = template("history.html", "pybatch.prompts.history").render(
        written=datetime.now().astimezone(),
        prompts=[(name, own, trends(own), colors(own)) for name, own in by_prompt.items()],
    )
    write_page(path, page)
