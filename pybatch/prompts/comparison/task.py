"""A comparison, from what is asked for to what it comes to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from pybatch.engine import SamplingParams
from pybatch.jobs.disk.publishing import publish
from pybatch.jobs.report.files import ReportFiles
from pybatch.jobs.report.report import write_json
from pybatch.jobs.rows import Row
from pybatch.jobs.sources.in_memory import digest_of
from pybatch.model.checkpoints.find import find_model
from pybatch.model.errors import ModelError
from pybatch.prompts.comparison.answering import Answered, Verdicts, answer_variants, judge_answers, measured
from pybatch.prompts.comparison.asking import digest
from pybatch.prompts.comparison.figures import AS_USUAL, Comparison, Plan, compared
from pybatch.prompts.comparison.jobs import JobFolder
from pybatch.prompts.comparison.judge import Judge, by_place, marks
from pybatch.prompts.comparison.latitude import POSTED, AtLatitude, log
from pybatch.prompts.comparison.report import write_report
from pybatch.prompts.comparison.score import Mark, Score, Scorer
from pybatch.prompts.comparison.statistics import expect_scipy
from pybatch.prompts.comparison.variants import Model, Variant
from pybatch.prompts.errors import PromptError
from pybatch.tune.cost import UNKNOWN, Prices

DEFAULT_MODEL = "smollm2-135m"
MOST_REPEATS = 1_000_000


@dataclass(frozen=True)
class Task:
    """What is compared, and how.

    sampling, engine: arguments of SamplingParams and LLM that are given, for all variants. repeats: how often each row
    is answered, each time with another seed. judge_model: None: the first variant's.
    """

    variants: Sequence[Variant]
    data: Sequence[Row]
    scorers: Sequence[Scorer | Judge]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 1
    judge_model: Model | None = None
    plan: Plan = AS_USUAL
    prices: Prices = UNKNOWN

    def __post_init__(self) -> None:
        """Raises ValueError for what is wrong with the task as a whole, before anything is loaded."""
        expect_scipy()
        for variant in self.variants:
            if isinstance(variant.model, str | Path):
                find_model(variant.model)
        if isinstance(self.judge_model, str | Path):
            try:
                find_model(self.judge_model)
            except ModelError as error:
                raise ModelError(f"judge_model: {str(error).removeprefix('model: ')}") from error
        if isinstance(self.repeats, bool) or not isinstance(self.repeats, int) or not 0 < self.repeats <= MOST_REPEATS:
            raise ValueError(f"repeats: expected 1 to {MOST_REPEATS:,}, got {self.repeats!r}")
        if not self.data:
            raise ValueError("data: expected rows, got none")
        for variant in self.variants:
            params = {**variant.prompt.config.sampling, **self.sampling}
            if SamplingParams(**{"max_tokens": None, **params}).n != 1:
                raise ValueError(f"n: expected 1, got {params['n']}; repeats has each row answered several times")
            expect_answerable(variant, self.data)
        for scorer in self.scorers:
            expect_fields(scorer, self.data)

    @property
    def seed(self) -> int:
        return int(self.engine.get("seed") or 0)

    @property
    def key(self) -> str:
        """The same for all tasks with the same answers."""
        parts = [(each.name, each.prompt.version, each.model_name) for each in self.variants]
        given = {name: str(value) for name, value in {**self.engine, **self.sampling}.items()}
        return digest(parts, given, self.repeats, digest_of(self.data))[:12]


def expect_answerable(variant: Variant, data: Sequence[Row]) -> None:
    """Raises PromptError if no row has what the prompt needs."""
    first: PromptError | None = None
    for row in data:
        try:
            variant.prompt.check(row.fields)
        except PromptError as error:
            first = first or error.of_row(row.index)
        else:
            return
    assert first is not None
    raise PromptError(f"{variant.name}: no row of the data will do: {first}")


def expect_fields(scorer: Scorer | Judge, data: Sequence[Row]) -> None:
    if isinstance(scorer, Judge):
        return
    for name in scorer.fields:
        if not any(name in row.fields for row in data):
            there = ", ".join(map(repr, data[0].fields)) or "nothing"
            raise ValueError(f"score {scorer.name!r}: no row has {name!r}; the first one has {there:.200}")


def run(task: Task, folder: JobFolder) -> Comparison:
    """Answers, judges and scores, and puts the scores in the folder. Raises what JobFolder.run raises."""
    judges = [each for each in task.scorers if isinstance(each, Judge)]
    judge_model = task.judge_model or task.variants[0].model
    if folder.fresh:
        folder.timings.forget()
        (folder.path / POSTED).unlink(missing_ok=True)
    answered = answer_variants(
        folder, task.variants, task.data, task.sampling, repeats=task.repeats, seed=task.seed, last=judge_model
    )
    verdicts = {
        judge.name: judge_answers(folder, f"verdicts.{number}", judge, judge_model, task.data, answered, task.repeats)
        for number, judge in enumerate(judges, start=1)
    }
    scores = list(scores_of(task, answered, verdicts))
    write_scores(folder.path / "scores.jsonl", scores)
    if folder.running.latitude is not None:
        folder.running.latitude.post([each.name for each in task.variants], scores)
    return compared(
        measured(folder, task.variants, answered),
        [each.name for each in task.scorers],
        scores,
        fields=lambda row: task.data[row].fields,
        answers=lambda row: answered.of(row, 0),
        rows=len(task.data),
        repeats=task.repeats,
        plan=task.plan,
        places={name: places(of) for name, of in verdicts.items()},
        prices=task.prices,
    )


def at_latitude(
    task: Task, project: str | None, folder: Path, tell: Callable[[str], object] = log.warning
) -> AtLatitude | None:
    """project: None for nowhere. folder: of the comparison. Raises what AtLatitude.expect raises."""
    if project is None:
        return None
    name = f"{' or '.join(each.name for each in task.variants)}, {task.key}"
    made = AtLatitude(project, name, folder, task.prices.per_hour, tell)
    made.expect()
    return made


def scores_of(task: Task, answered: Answered, verdicts: Mapping[str, Verdicts]) -> Iterator[Score]:
    """Of every answer by every scorer."""
    for row in task.data:
        for repeat in range(task.repeats):
            texts = answered.of(row.index, repeat)
            for scorer in task.scorers:
                if isinstance(scorer, Judge):
                    made = marks(texts, verdicts[scorer.name].get((row.index, repeat), {}))
                else:
                    made = {name: mark(scorer, row.fields, text) for name, text in texts.items()}
                for variant in task.variants:
                    error = answered.errors[variant.name].get((row.index, repeat), "")
                    one = made.get(variant.name, Mark(None, f"no answer: {error}"))
                    yield Score.of(one, variant.name, row.index, repeat, scorer.name)


def mark(scorer: Scorer, row: Mapping[str, Any], answer: str) -> Mark:
    missing = next((name for name in scorer.fields if name not in row), None)
    return scorer.mark(row, answer) if missing is None else Mark(None, f"the row has no {missing!r}")


def places(verdicts: Verdicts) -> tuple[int, int]:
    same, of = zip(*map(by_place, verdicts.values()), strict=True) if verdicts else ((0,), (0,))
    return sum(same), sum(of)


def write_scores(path: Path, scores: Sequence[Score]) -> None:
    def write(file: BinaryIO) -> None:
        for each in scores:
            file.write(json.dumps(asdict(each), ensure_ascii=False).encode(errors="backslashreplace") + b"\n")

    publish(str(path), write, replace=True, tag=0)


def tell_of(task: Task, comparison: Comparison, told: ReportFiles) -> None:
    """Writes what is asked for. Raises OSError, with the path."""
    title = " beside ".join(comparison.names)
    if told.json is not None:
        write_json(told.json, {"title": title, **comparison.to_json()})
    if told.html is not None:
        write_report(told.html, comparison, title, settings_of(task))


def settings_of(task: Task) -> dict[str, dict[str, Any]]:
    """For the report."""
    return {
        "Comparison": {"rows": len(task.data), "repeats": task.repeats, "seed": task.seed, **asdict(task.plan)},
        "Sampling": dict(task.sampling),
        "Engine": {name: str(value) for name, value in task.engine.items()},
        **{f"Prompt {each.name}": {"file": each.prompt.file or None, "version": each.prompt.version,
                                   "model": each.model_name, **each.prompt.config.sampling}
           for each in task.variants},
    }  # fmt: skip
