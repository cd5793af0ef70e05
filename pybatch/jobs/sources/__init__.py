"""Where a job's rows come from: files, streams and data in memory."""

from pybatch.jobs.sources.formats import INPUT_FORMATS
from pybatch.jobs.sources.open import open_source

__all__ = ["INPUT_FORMATS", "open_source"]
