"""Prometheus' metric families, in few words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from pybatch.engine.metrics import Distribution

PREFIX = "pybatch:"

# Edges in seconds, as in vLLM; between tokens three lower ones, since small models are faster than its lowest.
LATENCY = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
TOKEN_LATENCY = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
STEP_TOKENS = (1, 8, *(2**power for power in range(4, 15)))
SAMPLES = (1, 2, 5, 10, 20, 50, 100)

Labels = Mapping[str, str]
N = TypeVar("N", bound=str)
T = TypeVar("T")


def lengths(most: int) -> list[int]:
    """1, 2, 5, 10 and so on, up to `most`."""
    edges = (digit * 10**power for power in range(10) for digit in (1, 2, 5))
    return [edge for edge in edges if edge <= most]


def counter(name: str, help: str, values: Iterable[tuple[Labels, float]]) -> CounterMetricFamily:
    """Its samples' name ends in _total. All values have the same labels."""
    values = list(values)
    family = CounterMetricFamily(PREFIX + name, help, labels=names_of(values))
    for labels, value in values:
        family.add_metric(list(labels.values()), value)
    return family


def gauge(name: str, help: str, values: Iterable[tuple[Labels, float]]) -> GaugeMetricFamily:
    values = list(values)
    family = GaugeMetricFamily(PREFIX + name, help, labels=names_of(values))
    for labels, value in values:
        family.add_metric(list(labels.values()), value)
    return family


def histogram(
    name: str, help: str, edges: Sequence[float], values: Iterable[tuple[Labels, Distribution]]
) -> HistogramMetricFamily:
    """Numbers above an edge by less than 2% may be counted as below it; whole numbers up to 50 never are."""
    values = list(values)
    family = HistogramMetricFamily(PREFIX + name, help, labels=names_of(values))
    for labels, numbers in values:
        *counts, every = numbers.up_to([*edges, 1e9])
        buckets = [(str(float(edge)), count) for edge, count in zip(edges, counts, strict=True)]
        family.add_metric(list(labels.values()), [*buckets, ("+Inf", every)], numbers.total)
    return family


def by(label: str, values: Mapping[N, T], labels: Labels | None = None) -> list[tuple[Labels, T]]:
    """With one more label, whose values are the names."""
    return [({**(labels or {}), label: str(name)}, value) for name, value in values.items()]


def names_of(values: Sequence[tuple[Labels, object]]) -> list[str]:
    return list(values[0][0]) if values else []
