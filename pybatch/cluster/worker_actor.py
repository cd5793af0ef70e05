"""What Ray runs on a cluster's machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pybatch.cluster.process import Process, this_process

if TYPE_CHECKING:
    from pybatch.cluster.worker import Loaded, Report, Request


class WorkerActor:
    """A Worker, which is imported as it loads its model: what is missing on a machine (a library, the native parts) is
    then an error of that call, and the process is known before."""

    def process(self) -> Process:
        return this_process()

    def load(self, *arguments: Any) -> Loaded:
        """As Worker's."""
        from pybatch.cluster.worker import Worker

        self._worker = Worker()
        return self._worker.load(*arguments)

    def exchange(self, requests: Sequence[Request], withdrawn: Sequence[int]) -> Report:
        """As Worker's."""
        return self._worker.exchange(requests, withdrawn)
