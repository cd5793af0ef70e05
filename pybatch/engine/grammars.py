"""Requests that wait for their grammars, out of the scheduler's way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue

from pybatch.engine.scheduling.sequence import Request
from pybatch.engine.structured.compiler import GrammarCompiler
from pybatch.engine.structured.matcher import Matcher


class GrammarQueue:
    """make_compiler: called for the first request that has a constraint."""

    def __init__(self, make_compiler: Callable[[], GrammarCompiler]) -> None:
        self._make_compiler = make_compiler
        self._compiler: GrammarCompiler | None = None
        self._compiled: SimpleQueue[tuple[Request, Future[Matcher]]] = SimpleQueue()
        self._waiting: set[Request] = set()  # and such as have ended meanwhile

    def __len__(self) -> int:
        """Requests that wait. Of any thread."""
        return sum([not request.finished for request in list(self._waiting)])

    def add(self, request: Request) -> None:
        """The request comes out of `take` once its grammar is compiled, unless it has ended."""
        if self._compiler is None:
            self._compiler = self._make_compiler()
        constraint = request.params.structured_outputs
        assert constraint is not None
        grammar = self._compiler.compile(constraint, background=request.standing.background)
        self._waiting.add(request)
        grammar.add_done_callback(partial(self._put, request))

    def _put(self, request: Request, grammar: Future[Matcher]) -> None:
        self._compiled.put((request, grammar))

    def take(self) -> Iterator[tuple[Request, str | None]]:
        """Those that wait no longer: each has its grammar, or there is an error that says why not."""
        while not self._compiled.empty():
            request, grammar = self._compiled.get()
            self._waiting.remove(request)
            if request.finished:
                continue
            error = grammar.exception()
            if error is None:
                request.grammar = grammar.result()
            yield request, None if error is None else f"structured_outputs: {error}"
