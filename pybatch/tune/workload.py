"""What is to be run, for a plan: so many rows, and how long their prompts and outputs are."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from pybatch.tune.simulator import Work

SAMPLE = 1024  # rows of a file, evenly spaced
LONGEST = 2**24  # tokens that no model takes
BYTES_PER_TOKEN = 4  # of text, where there is no tokenizer
GOLDEN = 0.6180339887498949
EXPECTED = "expected a number of tokens, uniform:LOW:HIGH, normal:MEAN:SPREAD or lognormal:MEDIAN:SIGMA, got "


@dataclass(frozen=True, slots=True)
class Lengths:
    """A distribution of tokens, at least `least`. quantile: of a share in (0, 1)."""

    text: str
    quantile: Callable[[float], float]
    least: int

    @classmethod
    def parse(cls, argument: str, text: str | int, least: int = 1) -> Lengths:
        """Raises ValueError."""
        kind, *numbers = str(text).split(":")
        try:
            given = [float(each) for each in (numbers or [kind])]
        except ValueError:
            given = []
        if not given or not all(least <= each <= LONGEST for each in given[:1]) or not all(map(math.isfinite, given)):
            raise ValueError(f"{argument}: {EXPECTED}{text!r}")
        first, second = given[0], given[-1]
        makers: dict[tuple[str, int], Callable[[float], float]] = {
            ("uniform", 2): lambda share: first + share * (second - first),
            ("normal", 2): lambda share: NormalDist(first, second).inv_cdf(share) if second else first,
            ("lognormal", 2): lambda share: first * math.exp(second * NormalDist().inv_cdf(share)),
        }
        quantile = makers.get((kind, len(numbers))) if numbers else lambda share: first
        if quantile is None or second < 0 or (kind == "uniform" and second < first):
            raise ValueError(f"{argument}: {EXPECTED}{text!r}")
        return cls(str(text), quantile, least)

    def at(self, share: float) -> int:
        return max(self.least, round(self.quantile(share)))


@dataclass(frozen=True, slots=True)
class Workload:
    """rows: of the whole job. sample: rows that stand for all of them, evenly."""

    rows: int
    sample: Sequence[Work]

    @property
    def input_tokens(self) -> float:
        """Of a row, on average."""
        return sum(len(work.prompt_token_ids) for work in self.sample) / len(self.sample)

    @property
    def output_tokens(self) -> float:
        return sum(sum(work.output_tokens) for work in self.sample) / len(self.sample)

    @property
    def longest(self) -> int:
        return max(len(work.prompt_token_ids) + max(work.output_tokens) for work in self.sample)

    def take(self, number: int) -> Iterator[Work]:
        """So many rows like the sample's, evenly; of a sample that is too small each comes again, as another prompt."""
        size = len(self.sample)
        for i in range(number):
            turn, at = divmod(i, size) if number > size else (0, i * size // number)
            work = self.sample[at]
            yield (
                work
                if not turn
                else Work([token + (turn << 40) for token in work.prompt_token_ids], work.output_tokens)
            )


def of_lengths(rows: int, inputs: Lengths, outputs: Lengths, shared_prefix: int = 0) -> Workload:
    """shared_prefix: tokens with which all prompts begin. Raises ValueError."""
    if rows < 1:
        raise ValueError(f"rows: expected a positive number, got {rows}")
    if shared_prefix < 0:
        raise ValueError(f"shared_prefix: expected a number of tokens, at least 0, got {shared_prefix}")
    sample = []
    for i in range(min(rows, SAMPLE)):
        number, begin = inputs.at((i + 0.5) * GOLDEN % 1), (i + 1) << 20
        shared, own = range(min(number, shared_prefix)), range(begin, begin + max(0, number - shared_prefix))
        prompt = [*shared, *own] if shared else own
        sample.append(Work(prompt, [outputs.at((i + 0.5) * (GOLDEN**2) % 1)]))
    return Workload(rows, sample)


def of_file(
    path: str, outputs: Lengths | None, rows: int | None, encode: Callable[[str], Sequence[int]] | None
) -> Workload:
    """Of a file of JSON objects, one a line: with "input_tokens" and "output_tokens", or with "prompt" or "messages"
    and "max_tokens" or "max_completion_tokens", also inside "body". Raises ValueError and OSError.

    outputs: of rows that do not tell. rows: of the job; None: as many as the file has. encode: a tokenizer's; None: a
    token is four bytes.
    """
    works: list[Work] = []
    with Path(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    works.append(row(json.loads(line), number, outputs, encode))
                except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    if not works:
        raise ValueError(f"{path}: expected a row of JSON on each line, and it has none")
    step = max(1, len(works) / SAMPLE)
    return Workload(rows or len(works), [works[int(i * step)] for i in range(min(len(works), SAMPLE))])


def row(
    fields: Mapping[str, Any], number: int, outputs: Lengths | None, encode: Callable[[str], Sequence[int]] | None
) -> Work:
    fields = fields.get("body", fields)
    made = next(
        (fields[name] for name in ("output_tokens", "max_completion_tokens", "max_tokens") if name in fields), None
    )
    if made is None:
        if outputs is None:
            raise ValueError("expected output_tokens or max_tokens in the row, or --output-tokens")
        made = outputs.at((number - 0.5) * GOLDEN % 1)
    if "input_tokens" in fields:
        begin = number << 20
        return Work(range(begin, begin + max(1, int(fields["input_tokens"]))), [max(1, int(made))])
    text = fields.get("prompt")
    if text is None and "messages" in fields:
        text = "\n".join(f"{each.get('role')}: {each.get('content')}" for each in fields["messages"])
    if not isinstance(text, str):
        raise ValueError("expected input_tokens, a prompt or messages")
    return Work(list(encode(text)) if encode is not None else pieces(text), [max(1, int(made))])


def pieces(text: str) -> array[int]:
    """A number for each few bytes: the same for the same text, so that what prompts share is found."""
    raw = text.encode(errors="replace")
    return array(
        "q", [int.from_bytes(raw[i : i + BYTES_PER_TOKEN], "big") for i in range(0, max(1, len(raw)), BYTES_PER_TOKEN)]
    )
