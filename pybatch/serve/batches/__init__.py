"""Batches as jobs on the server's engine."""

from pybatch.serve.batches.mapping import Mapping
from pybatch.serve.batches.runner import BatchRunner, BatchTotals

__all__ = ["BatchRunner", "BatchTotals", "Mapping"]
