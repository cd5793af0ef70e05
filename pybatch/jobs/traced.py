"""Jobs whose rows are traced, or not, for those who run them. Imports nothing that only traces need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pybatch.jobs.dialects.template import Template
from pybatch.jobs.sources.faults import missing_package
from pybatch.latitude.access import Access, trace_sender
from pybatch.latitude.tracing import Tracing

if TYPE_CHECKING:
    from pybatch.jobs.job import Job


def traced(
    tracing: Tracing, model: str | Path, price_per_hour: float | None, tell: Callable[[str], object]
) -> Callable[[Job], AbstractContextManager[object]]:
    """What is to be entered with a job while its rows run. price_per_hour: as RowTraces'. tell: as SpanSender's.

    Raises ValueError for a key, an address or a package that is missing, and for what is wrong with the tracing.
    """
    access = Access.from_environment(tracing.project)
    try:
        from pybatch.jobs.row_traces import RowTraces
    except ModuleNotFoundError as error:
        raise missing_package("latitude", str(error.name), "latitude") from None
    for text in (tracing.session or "", *tracing.metadata.values()):
        Template(text)

    def trace(job: Job) -> AbstractContextManager[object]:
        return RowTraces(trace_sender(access, tell), job, Path(model).name, tracing, price_per_hour)

    return trace
