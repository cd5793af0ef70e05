"""The answers that a job may use again: those of its own equal rows, and those of earlier jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pybatch.api.outcomes import Answer
from pybatch.engine.pooling_params import Params, PoolingParams
from pybatch.engine.sampling_params import GREEDY_TEMPERATURE
from pybatch.jobs.answers.cache import ResponseCache
from pybatch.jobs.answers.cache_keys import CacheKeys


@dataclass(frozen=True, slots=True)
class Found:
    answer: Answer
    from_other_job: bool


class JobAnswers:
    """One job's view of a ResponseCache.

    folder: where answers are kept for later jobs; None: they go with this one, and only requests that other rows may
    repeat are kept, which are greedy or have a seed. job_id: the same in all runs of a job.
    """

    def __init__(self, keys: CacheKeys, job_id: str, folder: Path | None = None) -> None:
        self._keys, self._job_id, self._for_later = keys, job_id, folder is not None
        self._cache = ResponseCache(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._cache.close()

    def key(self, token_ids: Sequence[int], params: Params, index: int) -> bytes | None:
        """None for a request whose answer is kept for no other."""
        if not (self._for_later or may_repeat(params)):
            return None
        return self._keys.key(token_ids, params, index)

    def get(self, key: bytes) -> Found | None:
        found = self._cache.get(key)
        return None if found is None else Found(found.answer, found.job != self._job_id)

    def put(self, key: bytes, row: int, answer: Answer) -> None:
        self._cache.put(key, self._job_id, row, answer)


def may_repeat(params: Params) -> bool:
    """Whether another row of the job can have the same answer by what it asks for."""
    if isinstance(params, PoolingParams):
        return True
    return params.seed is not None or params.temperature < GREEDY_TEMPERATURE


def number_of(key: bytes) -> int:
    """64 bits of a key, never 0."""
    return int.from_bytes(key[:8], "little") | 1
