"""What work costs: the machine by the hour, beside what APIs ask for the same tokens. Money is in dollars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class ApiPrice:
    """Of a million tokens."""

    name: str
    input: float
    output: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Of NAME:IN:OUT. Raises ValueError."""
        name, *prices = text.rsplit(":", 2)
        try:
            given, made = map(float, prices)
        except ValueError:
            given = made = -1.0
        if not name or not all(0 <= price < math.inf for price in (given, made)):
            raise ValueError(
                "compare_price: expected NAME:IN:OUT, in dollars a million tokens, such as mini:0.15:0.60, got "
                f"{text!r}"
            )
        return cls(name, given, made)

    def dollars(self, usage: Usage) -> float:
        return (usage.input_tokens * self.input + usage.output_tokens * self.output) / MILLION


@dataclass(frozen=True, slots=True)
class Usage:
    """What was done, or is to be. seconds: of the machine."""

    seconds: float
    rows: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Of work on a machine of one's own. Each price bears the whole cost: that of a million output tokens has their
    input in it, and the other way round. None: of nothing."""

    dollars: float
    per_row: float | None
    per_million_tokens: float | None  # input and output
    per_million_input_tokens: float | None
    per_million_output_tokens: float | None

    @classmethod
    def of(cls, per_hour: float, usage: Usage) -> Self:
        dollars = per_hour * usage.seconds / 3600

        def price(count: int, of: float = MILLION) -> float | None:
            return dollars / count * of if count else None

        return cls(
            dollars,
            price(usage.rows, 1),
            price(usage.input_tokens + usage.output_tokens),
            price(usage.input_tokens),
            price(usage.output_tokens),
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """per_hour: of the machine, or of all machines that work together; None: not known."""

    per_hour: float | None = None
    apis: tuple[ApiPrice, ...] = ()

    def __post_init__(self) -> None:
        if self.per_hour is not None and not 0 <= self.per_hour < math.inf:
            raise ValueError(f"price_per_hour: expected dollars, at least 0, got {self.per_hour!r}")

    @classmethod
    def of(cls, per_hour: float | None, apis: Iterable[str]) -> Self:
        """apis: NAME:IN:OUT each. Raises ValueError."""
        if isinstance(apis, str):
            raise ValueError(f"compare_price: expected a list of NAME:IN:OUT, got {apis!r}")
        return cls(per_hour, tuple(map(ApiPrice.parse, apis)))

    def cost(self, usage: Usage) -> Cost | None:
        return None if self.per_hour is None else Cost.of(self.per_hour, usage)

    def figures(self, usage: Usage) -> dict[str, str]:
        """As people read them, by name."""
        cost = self.cost(usage)
        told: dict[str, str] = {}
        if cost is not None:
            told["cost"] = f"{dollars(cost.dollars)} at {dollars(self.per_hour)} an hour"
            told["cost a row"] = dollars(cost.per_row)
            told["cost a million tokens"] = dollars(cost.per_million_tokens)
            told["cost a million input tokens"] = f"{dollars(cost.per_million_input_tokens)}, their output with them"
            told["cost a million output tokens"] = f"{dollars(cost.per_million_output_tokens)}, their input with them"
        for api in self.apis:
            asked = api.dollars(usage)
            times = f", {asked / cost.dollars:,.3g} times the cost here" if cost is not None and cost.dollars else ""
            told[f"cost by {api.name}"] = f"{dollars(asked)}{times}"
        return told

    def to_json(self, usage: Usage) -> Mapping[str, Any]:
        cost = self.cost(usage)
        fields = ("dollars", "per_row", "per_million_tokens", "per_million_input_tokens", "per_million_output_tokens")
        return {
            "price_per_hour": self.per_hour,
            **{name: None if cost is None else getattr(cost, name) for name in fields},
            "apis": {api.name: api.dollars(usage) for api in self.apis},
        }


UNKNOWN = Prices()


def dollars(amount: float | None) -> str:
    """In full, with as many digits as tell something; a dash for None."""
    if amount is None:
        return "-"
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${amount:.{2 - math.floor(math.log10(amount))}f}"
