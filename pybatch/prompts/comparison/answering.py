"""The variants' answers and the judges' verdicts, job by job."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pybatch.api.inputs import expect_tokenizer
from pybatch.api.session import Session
from pybatch.jobs.rows import Row
from pybatch.jobs.sources.in_memory import size_of
from pybatch.prompts.comparison.asking import AskingRows, Key, asked_of_variants, digest, earlier_name
from pybatch.prompts.comparison.figures import Measured
from pybatch.prompts.comparison.jobs import JobFolder
from pybatch.prompts.comparison.judge import LETTERS, Duel, Judge, duels, letter_tokens
from pybatch.prompts.comparison.variants import Model, Variant

Verdicts = Mapping[Key, Mapping[tuple[str, str], str | None]]
"""Letters, by a row and a repeat, and by the variants in the order in which they were shown; None: the duel failed."""


@dataclass(frozen=True)
class Answered:
    """What the variants have answered. texts: None where there is no answer; errors: why."""

    texts: dict[str, dict[Key, str | None]]
    errors: dict[str, dict[Key, str]]
    input_tokens: dict[str, int]
    output_tokens: dict[str, int]

    def of(self, row: int, repeat: int) -> dict[str, str]:
        """The answers that there are, by variant."""
        found = {name: of[row, repeat] for name, of in self.texts.items()}
        return {name: text for name, text in found.items() if text is not None}


def answer_variants(
    folder: JobFolder,
    variants: Sequence[Variant],
    data: Sequence[Row],
    sampling: Mapping[str, Any],
    *,
    repeats: int,
    seed: int,
    last: Model,
) -> Answered:
    """Variants of one model share a job and its engine; models run one after another. last: the model that is to stay
    loaded."""
    names = [each.name for each in variants]
    made = Answered({}, {name: {} for name in names}, dict.fromkeys(names, 0), dict.fromkeys(names, 0))
    groups: dict[Model, list[Variant]] = defaultdict(list)
    for variant in sorted(variants, key=lambda each: each.model == last):
        groups[variant.model].append(variant)
    earlier: dict[str, dict[Key, str | None]] = {}
    number = 0
    for model, own in groups.items():
        for step in range(max(len(variant.prompt.steps) for variant in own)):
            asked = [variant for variant in own if len(variant.prompt.steps) > step]
            number += 1
            name = "answers" if number == 1 else f"answers.{number}"
            rows = asked_of_variants(data, asked, repeats, seed, step, earlier)
            results = folder.run(name, "Answering", rows, model, sampling, timed=True)
            for variant in asked:
                texts = take(made, variant, [each for each in results if each["variant"] == variant.name])
                earlier[earlier_name(variant, step)] = made.texts[variant.name] = texts
    return made


def take(made: Answered, variant: Variant, results: Sequence[Mapping[str, Any]]) -> dict[Key, str | None]:
    """Counts a variant's results of a step, and gives their texts."""
    texts: dict[Key, str | None] = {}
    for each in results:
        key = each["row"], each["repeat"]
        texts[key] = each.get("response")
        if "error" in each:
            made.errors[variant.name].setdefault(key, each["error"])
        usage = each.get("usage", {})
        made.input_tokens[variant.name] += usage.get("prompt_tokens", 0)
        made.output_tokens[variant.name] += usage.get("completion_tokens", 0)
    return texts


def measured(folder: JobFolder, variants: Sequence[Variant], answered: Answered) -> list[Measured]:
    times = folder.timings.read()
    return [
        Measured(
            name=variant.name,
            prompt=variant.prompt.name,
            version=variant.prompt.version,
            model=variant.model_name,
            answers=len(answered.texts[variant.name]),
            errors=len(answered.errors[variant.name]),
            input_tokens=answered.input_tokens[variant.name],
            output_tokens=answered.output_tokens[variant.name],
            seconds=times[variant.name].seconds,
            latencies=tuple(times[variant.name].latencies.values()),
        )
        for variant in variants
    ]


def judge_answers(
    folder: JobFolder, name: str, judge: Judge, model: Model, data: Sequence[Row], answered: Answered, repeats: int
) -> Verdicts:
    """name: of the file."""
    asked = [
        duel
        for row in data
        for repeat in range(repeats)
        for duel in duels(row.index, repeat, answered.of(row.index, repeat))
    ]
    verdicts: dict[Key, dict[tuple[str, str], str | None]] = defaultdict(dict)
    if not asked:
        return verdicts
    results = folder.run(
        name,
        "Judging",
        asked_of_judge(judge, asked, data, answered),
        model,
        {"temperature": 0.0, "max_tokens": 1},
        params_for=letters_alone,
    )
    for each in results:
        said = each.get("response", "").strip()
        verdicts[each["row"], each["repeat"]][each["first"], each["second"]] = said if said in LETTERS else None
    return verdicts


def asked_of_judge(judge: Judge, asked: Sequence[Duel], data: Sequence[Row], answered: Answered) -> AskingRows:
    def rows() -> Iterator[Row]:
        for index, duel in enumerate(asked):
            texts = answered.of(duel.row, duel.repeat)
            text = judge.question(data[duel.row].fields, texts[duel.first], texts[duel.second])
            names = {"row": duel.row, "repeat": duel.repeat, "first": duel.first, "second": duel.second}
            place = f"{data[duel.row].place}, {duel.first} beside {duel.second}"
            yield Row(index, place, size_of({"asked": text}), {**names, "asked": text, "sampling": {}})

    return AskingRows("the answers", rows, digest(*(json.dumps(row.fields) for row in rows())))


def letters_alone(session: Session) -> dict[str, Any]:
    """What makes the model answer with a verdict and nothing else."""
    return {"allowed_token_ids": letter_tokens(expect_tokenizer(session.tokenizer).encode)}
