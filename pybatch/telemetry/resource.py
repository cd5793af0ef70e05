"""Whose spans they are."""

from __future__ import annotations

from functools import cache

from opentelemetry.sdk.resources import Resource

import pybatch


@cache
def resource() -> Resource:
    return Resource.create({"service.name": "pybatch", "service.version": pybatch.__version__})
