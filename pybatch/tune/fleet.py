"""A job on many machines, on paper: start-up, stragglers and failures, from what one machine was simulated to do.

Rows go to machines as these have room, as the workers of a cluster take them. So all machines are busy until no row is
left to hand out, whatever their speeds; then each ends those that it has. A machine that fails loses what it has begun,
which others do again, and is back after its start-up.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

RUNS = 25  # of which the median is told, and the slowest tenth
MOST_EVENTS = 2_000_000  # of a run


@dataclass(frozen=True, slots=True)
class Fleet:
    """machines: how many. startup: seconds from the start of a machine until it computes. stragglers: the share of
    machines that take `slowdown` times as long. mtbf: hours that a machine runs between failures on average; None: none
    fails."""

    machines: int
    startup: float = 0.0
    stragglers: float = 0.0
    slowdown: float = 1.0
    mtbf: float | None = None

    def __post_init__(self) -> None:
        for name, value, good, expected in (
            ("machines", self.machines, self.machines >= 1, "at least 1"),
            ("startup", self.startup, 0 <= self.startup < math.inf, "seconds, at least 0"),
            ("stragglers", self.stragglers, 0 <= self.stragglers <= 1, "a share of the machines, from 0 to 1"),
            ("slowdown", self.slowdown, 1 <= self.slowdown < math.inf, "a factor, at least 1"),
            ("mtbf", self.mtbf, self.mtbf is None or 0 < self.mtbf < math.inf, "hours, above 0"),
        ):
            if not good:
                raise ValueError(f"{name}: expected {expected}, got {value!r}")

    @classmethod
    def parse(cls, machines: int, startup: float, stragglers: str | None, mtbf: float | None) -> Fleet:
        """stragglers: SHARE:FACTOR. Raises ValueError."""
        share, factor = 0.0, 1.0
        if stragglers is not None:
            try:
                share, factor = map(float, stragglers.split(":"))
            except ValueError:
                raise ValueError(f"stragglers: expected SHARE:FACTOR, such as 0.05:2, got {stragglers!r}") from None
        return cls(machines, startup, share, factor, mtbf)


@dataclass(frozen=True, slots=True)
class OneMachine:
    """What one of them does. row_seconds: that a row more takes. batch: rows that it has at a time. ramp: seconds
    beyond rows times row_seconds, in which its batch fills and empties."""

    row_seconds: float
    batch: int
    ramp: float


@dataclass(frozen=True, slots=True)
class FleetRun:
    """seconds: until the last row is done. machine_seconds: of all machines together, from their start. efficiency:
    what machines without start-up, stragglers and failures would have taken of these. repeated: rows begun again after
    a failure."""

    seconds: float
    machine_seconds: float
    efficiency: float
    failures: int
    repeated: int


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """typical: the run of median length. late: that of which nine in ten are faster."""

    fleet: Fleet
    rows: int
    typical: FleetRun
    late: FleetRun


def plan_fleet(fleet: Fleet, rows: int, machine: OneMachine, runs: int = RUNS, seed: int = 0) -> FleetPlan:
    """Raises ValueError where machines fail so often that the job does not end."""
    made = sorted((simulate(fleet, rows, machine, seed + i) for i in range(runs)), key=lambda run: run.seconds)
    return FleetPlan(fleet, rows, made[len(made) // 2], made[math.ceil(0.9 * len(made)) - 1])


def simulate(fleet: Fleet, rows: int, machine: OneMachine, seed: int = 0) -> FleetRun:
    """One run by events: a machine is ready, or fails. Between two events rows are done at a constant rate."""
    rng = random.Random(seed)
    slow = rng.sample(range(fleet.machines), round(fleet.stragglers * fleet.machines))
    factors = [1.0] * fleet.machines
    for number in slow:
        factors[number] = fleet.slowdown
    rates = [1 / (machine.row_seconds * factor) for factor in factors]
    rate_seconds = math.inf if fleet.mtbf is None else 3600 * fleet.mtbf
    has = float(min(machine.batch, math.ceil(rows / fleet.machines)))  # rows in a machine
    left = float(rows)  # that no machine has done; the last of them are in machines
    now, rate, failures, repeated = 0.0, 0.0, 0, 0.0
    up: set[int] = set()
    events = [(fleet.startup, number, True) for number in range(fleet.machines)]
    heapq.heapify(events)
    while True:
        in_machines = has * len(up)
        until = now + max(0.0, left - in_machines) / rate if rate else math.inf
        if not events or events[0][0] >= until:
            now, left = until, min(left, in_machines)
            break
        if failures > MOST_EVENTS:
            raise ValueError(f"mtbf: machines that fail every {fleet.mtbf} hours do not end {rows:,} rows")
        at, number, ready = heapq.heappop(events)
        left -= rate * (at - now)
        now = at
        if ready:
            up.add(number)
            rate += rates[number]
            if math.isfinite(rate_seconds):
                heapq.heappush(events, (now + rng.expovariate(1 / rate_seconds), number, False))
            continue
        up.discard(number)
        rate = sum(rates[each] for each in up) if len(up) < 100 else rate - rates[number]
        failures += 1
        begun = has / 2  # each row is half done, on average
        repeated += has
        left += begun
        heapq.heappush(events, (now + fleet.startup, number, True))
    share = left / in_machines if in_machines else 0.0
    drain = (machine.ramp + has * machine.row_seconds) * share
    seconds = now + max((drain * factors[each] for each in up), default=0.0)
    total = seconds * fleet.machines
    return FleetRun(seconds, total, rows * machine.row_seconds / total, failures, round(repeated))


def fleets(largest: Fleet, rows: int, machine: OneMachine) -> Sequence[FleetPlan]:
    """Of a few sizes up to that one: what more machines bring."""
    sizes = sorted({max(1, largest.machines // part) for part in (8, 4, 2, 1)})
    return [plan_fleet(replace(largest, machines=size), rows, machine) for size in sizes]
