"""The server on a thread of the test's own process, so that its engine can be looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.guard.binding import bind, url
from pybatch.serve.guard.keys import Keys, load_keys
from pybatch.serve.run import Server
from pybatch.serve.service import Service
from pybatch.serve.settings import ServerSettings
from pybatch.serve.store import Storage, open_storage

SECONDS = 60


class LocalServer:
    """url: with the port. stop: makes it stop as SIGTERM does."""

    def __init__(self, llm: AsyncLLM, settings: ServerSettings, keys: Keys, storage: Storage) -> None:
        self.llm, self.service = llm, Service(llm, settings, storage)
        self.bound = bind(settings, keys)
        self.stop = threading.Event()
        self.service.requests.stopping = self.stop.is_set
        self.server = Server(self.service, keys, self.bound)
        self.bound.listen()
        self.url = url(settings, self.bound)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.bound]}, name="server")

    def expect_idle(self) -> None:
        """Nothing is left of any request, in the server or in the engine."""
        session, deadline = self.llm.session, time.monotonic() + SECONDS
        while len(self.service.requests) or not session.idle or self.llm.engine.has_unfinished():
            assert time.monotonic() < deadline, "a request is stuck"
            time.sleep(0.01)
        self.llm.engine.check_integrity()
        assert self.service.prompts == 0


@contextmanager
def local_server(llm: AsyncLLM, **settings: object) -> Iterator[LocalServer]:
    made = ServerSettings(**{"port": 0, "served_model_name": ["tiny"], **settings})  # type: ignore[arg-type]
    keys = load_keys(made.api_key or (), made.api_key_file, {}, made.limits)
    with open_storage(made) as storage:
        server = LocalServer(llm, made, keys, storage)
        server.thread.start()
        try:
            yield server
        finally:
            server.stop.set()
            server.thread.join(SECONDS)
            server.bound.close()
            assert not server.thread.is_alive()
