"""Requests that cannot be scheduled yet: those that wait for their grammars, or for places for their adapters."""

from __future__ import annotations

from collections.abc import Iterator

from pybatch.engine.adapters import Adapters
from pybatch.engine.grammars import GrammarQueue
from pybatch.engine.scheduling.sequence import Request


class Entrance:
    """A request waits for its grammar first, then for its adapter."""

    def __init__(self, grammars: GrammarQueue, adapters: Adapters) -> None:
        self._grammars, self._adapters = grammars, adapters

    def __len__(self) -> int:
        """Requests that wait."""
        return len(self._grammars) + len(self._adapters)

    def admit(self, request: Request) -> bool:
        """Whether the request may be scheduled now; else it comes out of `take` once it may. Raises ValueError if its
        adapter cannot be read any more."""
        if request.awaits_grammar:
            self._grammars.add(request)
            return False
        return request.adapter is None or self._adapters.admit(request)

    def has_admitted(self, request: Request) -> bool:
        """Of one that has not finished."""
        return not request.awaits_grammar and (request.adapter is None or request in request.adapter.users)

    def take(self) -> Iterator[tuple[Request, str | None]]:
        """Those that wait no longer: each may be scheduled, or there is an error that says why not."""
        for request, error in self._grammars.take():
            try:
                admitted = error is None and self.admit(request)
            except ValueError as fault:
                admitted, error = False, str(fault)
            if admitted or error is not None:
                yield request, error
        yield from self._adapters.take()
