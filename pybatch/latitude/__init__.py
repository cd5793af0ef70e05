"""Latitude: what a job or a server does as traces there, data sets from and to there, scores and experiments.

Needs the extra ``latitude``, and a key in the variable LATITUDE_API_KEY.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pybatch.lazy import lazy_names

if TYPE_CHECKING:
    from pybatch.latitude.access import Access
    from pybatch.latitude.errors import LatitudeError
    from pybatch.latitude.experiments import ScoredRow, labels, post_comparison
    from pybatch.latitude.project import Project
    from pybatch.latitude.trace_ids import trace_id
    from pybatch.latitude.tracing import Tracing

__all__ = [
    "Access",
    "LatitudeError",
    "Project",
    "ScoredRow",
    "Tracing",
    "labels",
    "post_comparison",
    "trace_id",
]

__getattr__, __dir__ = lazy_names(
    globals(),
    {
        "Access": "pybatch.latitude.access",
        "LatitudeError": "pybatch.latitude.errors",
        "Project": "pybatch.latitude.project",
        "ScoredRow": "pybatch.latitude.experiments",
        "Tracing": "pybatch.latitude.tracing",
        "labels": "pybatch.latitude.experiments",
        "post_comparison": "pybatch.latitude.experiments",
        "trace_id": "pybatch.latitude.trace_ids",
    },
)
