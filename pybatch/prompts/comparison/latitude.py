"""A comparison at Latitude: each answer a trace that bears its variant, the scores, and an experiment over both."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pybatch.jobs.job import Job
from pybatch.jobs.journal import Journal
from pybatch.jobs.traced import traced
from pybatch.latitude import Project, ScoredRow, Tracing, labels, post_comparison, trace_id
from pybatch.latitude.experiments import post_scores
from pybatch.prompts.comparison.asking import Key
from pybatch.prompts.comparison.score import Score

log = logging.getLogger(__name__)

POSTED = "latitude.json"  # of the folder: what has been posted


@dataclass(frozen=True)
class AtLatitude:
    """project: its slug. name: of the experiment. folder: of the comparison. price_per_hour: as RowTraces'. tell:
    prints a line."""

    project: str
    name: str
    folder: Path
    price_per_hour: float | None = None
    tell: Callable[[str], object] = log.warning

    def expect(self) -> None:
        """Raises ValueError for what is missing here, LatitudeError for a key or a project that is not known there."""
        Project(self.project).expect()

    def traced(self, job: Job, model: str) -> AbstractContextManager[object]:
        """Sends the traces of one of the comparison's jobs while its rows run."""
        named = labels(escaped(self.name), "{variant}")
        tracing = Tracing(self.project, metadata={**named, "asked_row": "{row}", "repeat": "{repeat}"})
        return traced(tracing, model, self.price_per_hour, self.tell)(job)

    def post(self, variants: Sequence[str], scores: Iterable[Score]) -> None:
        """The scores of each scorer once, however often the comparison goes on, and the experiment once. Scores that
        are not from 0 to 1 stay here. Raises LatitudeError."""
        file = self.folder / POSTED
        before: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"scorers": []}
        traces = dict(traces_of(self.folder))
        new = [
            ScoredRow(
                each.variant,
                traces[each.variant, (each.row, each.repeat)],
                each.score,
                bool(each.passed),
                each.scorer,
                each.feedback,
            )
            for each in scores
            if each.scorer not in before["scorers"] and each.score is not None and 0 <= each.score <= 1
        ]
        if new:
            project = Project(self.project)
            if "experiment" in before:
                post_scores(project, self.name, new)
            else:
                before["experiment"] = post_comparison(project, self.name, variants, new)
            before["scorers"] += sorted({each.scorer for each in new})
            file.write_text(json.dumps({"project": self.project, **before}) + "\n")
        self.tell(f"Latitude: {len(new):,} scores are posted; the experiment is {before.get('experiment')}.")


def traces_of(folder: Path) -> Iterator[tuple[tuple[str, Key], str]]:
    """The trace of each answer, by its variant, row and repeat; of a chain's answers those of the last step."""
    journals = folder.glob("answers*.jsonl.journal")
    for path in sorted(journals, key=lambda each: (len(each.name), each.name)):
        journal = Journal.open(str(path))
        try:
            job = journal.job_id
        finally:
            journal.close()
        with path.with_suffix("").open("rb") as answers:
            for number, line in enumerate(answers):
                result = json.loads(line)
                yield (result["variant"], (result["row"], result["repeat"])), trace_id(job, number)


def escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
