"""One call's requests, each with its outputs, whatever other calls the engine has."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import suppress
from typing import Any

from pybatch.api.inputs import Encoded, Prompt, fault_of
from pybatch.api.interrupts import deferred_interrupts
from pybatch.api.session import Session
from pybatch.engine import RequestOutput
from pybatch.engine.errors import QueueFullError
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import ORDINARY, Standing


def run_requests(
    session: Session,
    requests: Iterator[tuple[Prompt, Params]],
    standing: Iterator[dict[str, Any]],
    *,
    partial: bool = False,
) -> Generator[RequestOutput, None, None]:
    """Draws requests while the engine has room for them, and yields its outputs, whose request_id is its place, from 0.

    standing: the fields of each one's Standing. partial: yield unfinished outputs too. Leaving the loop aborts what has
    not finished. Raises what a step raises, after the outputs that came before it.
    """
    numbered = enumerate(requests)
    in_flight = session.capacity
    inbox: deque[RequestOutput] = deque()
    ready: deque[tuple[int, Encoded, Params, Standing]] = deque()
    pending: dict[str, int] = {}  # the engine's request id -> the place among the requests
    try:
        while True:
            drawn = list(itertools.islice(numbered, in_flight - len(pending) - len(ready)))
            if drawn:
                encoded = session.encode([request for _, request in drawn])
                for (index, (_, params)), prompt in zip(drawn, encoded, strict=True):
                    place = ORDINARY
                    with fault_of(prompt):
                        place = Standing(**next(standing))
                    ready.append((index, prompt, params, place))
            with deferred_interrupts(), suppress(QueueFullError):  # other calls' requests are in their places
                while ready:
                    index, prompt, params, place = ready[0]
                    request_id = session.add(prompt, params, inbox.append, partial=partial, standing=place)
                    pending[request_id] = index
                    ready.popleft()
            if not (pending or ready):
                return
            fault: BaseException | None = None
            try:
                with deferred_interrupts() as interrupts:
                    while not (inbox or interrupts):
                        session.step(unless=inbox)
                        if ready:
                            break
            except BaseException as error:  # raised below, after the outputs that came before it
                fault = error
            while inbox:
                output = inbox.popleft()
                if fault is not None and output.error is not None:  # of those that the step has discarded
                    continue
                index = pending.pop(output.request_id) if output.finished else pending[output.request_id]
                output.request_id = str(index)
                yield output
            if fault is not None:
                raise fault
    finally:
        with deferred_interrupts():
            for request_id in pending:
                session.abort(request_id)
