"""The rows of a comparison's jobs: what is asked of the model, and what its answer is kept with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

from pybatch.api.outcomes import Failure, Outcome
from pybatch.api.protocols.request_error import RequestError
from pybatch.jobs.dialect import RowRequest
from pybatch.jobs.dialects.plain import PlainDialect, answer_fields
from pybatch.jobs.rows import Row
from pybatch.jobs.sources.in_memory import digest_of, size_of
from pybatch.prompts.comparison.variants import Variant
from pybatch.prompts.errors import PromptError
from pybatch.prompts.rendering import Rendered

RENDERED_AT_ONCE = 200  # rows: of PromptL's templates each batch takes a while to start
ASKED = ("asked", "sampling")  # fields of rows that results need not have

Key = tuple[int, int]  # a row and a repeat
Answers = Mapping[str, Mapping[Key, str | None]]
"""By variant; None: there is none."""


@dataclass
class AskingRows:
    """A Source of what is asked: rows with a text or messages in "asked", sampling parameters in "sampling", and fields
    that tell the answer from others. digested: of what the rows are made of."""

    name: str
    made: Callable[[], Iterator[Row]]
    digested: str
    rereadable: bool = True
    typed: bool = False

    def rows(self) -> Iterator[Row]:
        return self.made()

    def digest(self) -> str:
        return self.digested


@dataclass(frozen=True)
class AskingDialect(PlainDialect):
    """A result is the row's fields, but for what was asked, and the answer."""

    name: ClassVar[str] = "compare"

    def request(self, row: Row) -> RowRequest:
        if row.error is not None:
            raise RequestError(row.error, "invalid_prompt")
        asked = row.fields["asked"]
        prompt = self.text(asked) if isinstance(asked, str) else self.conversation(asked)
        return RowRequest((prompt,), row.fields["sampling"])

    def result(self, row: Row, outcome: Outcome, *, fields: bool = True) -> dict[str, Any]:
        own = {name: value for name, value in row.fields.items() if name not in ASKED}
        if isinstance(outcome, Failure):
            return {**own, "error": f"{row.place}: {outcome.message}"}
        return {**own, **answer_fields(outcome)}


def asked_of_variants(
    data: Sequence[Row], variants: Sequence[Variant], repeats: int, seed: int, step: int, earlier: Answers
) -> AskingRows:
    """Each row of the data for each repeat and variant, side by side: those that begin alike share their prefix.

    seed: a row and a repeat have one made of it, the same for all variants. step: of a chain; earlier: its answers, for
    each step before it by "variant/step".
    """

    def rows() -> Iterator[Row]:
        index = 0
        for start in range(0, len(data), RENDERED_AT_ONCE):
            some = data[start : start + RENDERED_AT_ONCE]
            rendered = [rendered_rows(some, variant, repeats, step, earlier) for variant in variants]
            for number, row in enumerate(some):
                for repeat in range(repeats):
                    for variant, each in zip(variants, rendered, strict=True):
                        made = each[number * repeats + repeat]
                        yield asking_row(index, row, repeat, variant, step, made, row_seed(seed, row.index, repeat))
                        index += 1

    parts = [(each.name, each.prompt.version, dict(each.sampling)) for each in variants]
    before = {name: list(of.values()) for name, of in earlier.items()} if step else {}
    return AskingRows("the data", rows, digest(digest_of(data), parts, repeats, seed, step, before))


def rendered_rows(
    data: Sequence[Row], variant: Variant, repeats: int, step: int, earlier: Answers
) -> list[Rendered | PromptError]:
    """Row by row, each repeat in turn."""
    if step == 0:
        once = variant.prompt.render_each([row.fields for row in data])
        return [error_or(row, each) for row, each in zip(data, once, strict=True) for _ in range(repeats)]
    names = variant.prompt.answers[:step]
    filled = []
    for row in data:
        for repeat in range(repeats):
            said = {name: earlier[earlier_name(variant, i)][row.index, repeat] for i, name in enumerate(names)}
            filled.append((row, said, {**row.fields, **said}))
    rendered = variant.prompt.render_each([fields for _, _, fields in filled], step)
    return [
        PromptError(f"the step {missing!r} has no answer")
        if (missing := next((name for name, text in said.items() if text is None), None))
        else error_or(row, each)
        for (row, said, _), each in zip(filled, rendered, strict=True)
    ]


def earlier_name(variant: Variant, step: int) -> str:
    return f"{variant.name}/{step}"


def error_or(row: Row, rendered: Rendered | PromptError) -> Rendered | PromptError:
    return rendered if row.error is None else PromptError(row.error)


def asking_row(
    index: int, row: Row, repeat: int, variant: Variant, step: int, made: Rendered | PromptError, seed: int
) -> Row:
    fields: dict[str, Any] = {"row": row.index, "repeat": repeat, "variant": variant.name}
    place = f"{row.place}, {variant.name}"
    if isinstance(made, PromptError):
        return Row(index, place, row.size, fields, str(made))
    prompt = variant.prompt
    sampling = {**prompt.config.sampling, **prompt.steps[step].sampling, **made.sampling, **variant.sampling}
    sampling["seed"] = seed ^ int(sampling.get("seed") or 0)
    fields |= {"asked": made.messages, "sampling": sampling}
    return Row(index, place, size_of({"asked": json.dumps(made.messages, default=str)}), fields)


def row_seed(seed: int, row: int, repeat: int) -> int:
    """31 bits, of which no two rows are likely to have the same."""
    return int.from_bytes(blake2b(f"{seed} {row} {repeat}".encode(), digest_size=4).digest(), "little") >> 1


def digest(*parts: Any) -> str:
    text = json.dumps(parts, sort_keys=True, default=str, separators=(",", ":"))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
