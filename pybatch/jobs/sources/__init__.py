"""Where a job's rows come from: files, streams and data in memory."""

from pybatch.jobs.sources.formats import INPUT_FORMATS
from pybatch.jobs.sources.open import open_source
from pybatch.jobs.sources.paths import files_of, would_read

__all__ = ["INPUT_FORMATS", "files_of", "open_source", "would_read"]
