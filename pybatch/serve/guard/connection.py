"""A client's connection, as far as it concerns HTTP's own layer."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_SECONDS = 75  # that a connection is kept between requests
HEADER_SECONDS = 20.0  # from a request's first byte to the end of its header


class Connection(H11Protocol):
    """Closes a connection whose request's header does not come, or comes too slowly; uvicorn times only the pause after
    a response."""

    _timer: asyncio.TimerHandle | None = None
    _begun = False  # a part of a header has come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_in(IDLE_SECONDS)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._begun = False
            self._stop_timer()
        elif not self._begun:
            self._begun = True
            self._close_in(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _close_in(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
