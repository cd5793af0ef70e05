"""What a model, a machine and a workload come to: for each precision the batch size, speed, time and cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pybatch.model.config import ModelConfig
from pybatch.tune.cost import Prices
from pybatch.tune.fleet import Fleet, FleetPlan, OneMachine, fleets
from pybatch.tune.options import Option, Targets
from pybatch.tune.precisions import ALIASES
from pybatch.tune.search import Machine, Search
from pybatch.tune.trace import Traces
from pybatch.tune.workload import Workload


@dataclass(frozen=True, slots=True)
class Plan:
    model: str
    machine: str
    rows: int
    input_tokens: float
    output_tokens: float
    options: list[Option]

    @property
    def chosen(self) -> Option | None:
        """That which costs least, by the machines' time."""
        able = [each for each in self.options if each.usage is not None]
        return min(able, key=lambda each: each.usage.seconds, default=None)  # type: ignore[union-attr]

    def fleets(self, largest: Fleet) -> Sequence[FleetPlan]:
        """What so many machines of the chosen option take, and fewer of them; none where there is no such option."""
        if self.chosen is None or self.chosen.best is None:
            return []
        best = self.chosen.best
        ramp = max(0.0, best.seconds - best.row_seconds * self.rows)
        return fleets(largest, self.rows, OneMachine(best.row_seconds, best.max_num_seqs, ramp))

    def to_json(self, prices: Prices) -> dict[str, Any]:
        chosen = self.chosen
        return {
            "model": self.model,
            "machine": self.machine,
            "rows": self.rows,
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "chosen": None if chosen is None else self.options.index(chosen),
            "options": [
                {**asdict(each), "cost": None if each.usage is None else prices.to_json(each.usage)}
                for each in self.options
            ],
        }


def plan(
    model: ModelConfig,
    machine: Machine,
    workload: Workload,
    targets: Targets,
    *,
    precisions: Sequence[str] = (),
    kv_cache_dtypes: Sequence[str] = (),
    max_num_seqs: int = 256,
    tell: Callable[[str], object] = lambda what: None,
) -> Plan:
    """precisions, kv_cache_dtypes: none: those of the machine. tell: called with what is being planned. Raises
    ValueError."""
    if workload.longest > model.max_position:
        raise ValueError(
            f"input_tokens, output_tokens: a row has {workload.longest:,} tokens, and the context of {model.name} is "
            f"{model.max_position:,}"
        )
    precisions = [ALIASES.get(each, each) for each in precisions]
    for name, given, known in (
        ("precision", precisions, machine.precisions),
        ("kv_cache_dtype", kv_cache_dtypes, machine.kv_cache_dtypes),
    ):
        for each in given:
            if each not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {each!r}")
    traces = Traces(workload, model.max_position, machine.max_num_batched_tokens)
    options = []
    for precision in precisions or machine.precisions:
        decoder = machine.decoder(model, precision)
        for kv in kv_cache_dtypes or machine.kv_cache_dtypes:
            tell(f"{precision}, KV {kv}")
            search = Search(machine, decoder, precision, kv, workload, targets, max_num_seqs, traces)
            options.append(search.option())
    return Plan(model.name, machine.name, workload.rows, workload.input_tokens, workload.output_tokens, options)
