"""The handle of a prefix that is kept in the KV cache."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from pybatch.api.inputs import Message, Prompt
from pybatch.api.interrupts import deferred_interrupts
from pybatch.api.session import Session
from pybatch.engine import RequestOutput
from pybatch.engine.scheduling.block_pool import Pin


class PinnedPrefix:
    """A prefix in the KV cache that no other request's blocks take the place of. It stays until release(), or until the
    end of a with block; not until the handle is garbage.

    >>> with llm.pin_prefix(instructions):
    ...     outputs = llm.generate([instructions + question for question in questions])

    prompt_token_ids: of the prefix. num_blocks: the KV blocks that it holds, 0 once it is released.
    """

    def __init__(self, session: Session, pin: Pin) -> None:
        self._session, self._pin = session, pin
        self.prompt_token_ids = pin.tokens.tolist()

    @property
    def num_blocks(self) -> int:
        return len(self._pin.blocks)

    def release(self) -> None:
        """Makes it a cached prefix like any other. May be called again, and on any thread."""
        self._session.unpin(self._pin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<PinnedPrefix of {len(self.prompt_token_ids)} tokens in {self.num_blocks} KV blocks>"


def pin_prefix(session: Session, prefix: Prompt | Sequence[Message]) -> PinnedPrefix:
    """As LLM.pin_prefix, by steps on this thread."""
    encoded = session.encode_prefix(prefix)
    inbox: list[RequestOutput] = []
    request_id, pin = session.pin_prefix(encoded, inbox.append)
    try:
        with deferred_interrupts() as interrupts:
            while not (inbox or interrupts):
                session.step(unless=inbox)
        return pinned(session, pin, inbox[0])
    except BaseException:
        with deferred_interrupts():
            session.abort(request_id)
            session.unpin(pin)
        raise


def pinned(session: Session, pin: Pin, output: RequestOutput) -> PinnedPrefix:
    """Of the output of the request that computed it. Raises RuntimeError if that failed."""
    if output.error is not None:
        raise RuntimeError(f"pin_prefix: {output.error}")
    return PinnedPrefix(session, pin)
