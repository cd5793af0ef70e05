"""Latitude: what a job or a server does as traces there.

Needs the extra ``latitude``, and a key in the variable LATITUDE_API_KEY.
"""

from __future__ import annotations

from pybatch.latitude.access import Access
from pybatch.latitude.trace_ids import trace_id
from pybatch.latitude.tracing import Tracing

__all__ = ["Access", "Tracing", "trace_id"]
