"""The server as a process: its socket, its model, and uvicorn."""

from __future__ import annotations

import socket
from collections.abc import Callable

import uvicorn

from pybatch.api.async_llm import AsyncLLM
from pybatch.serve.app import create_app
from pybatch.serve.service import Service
from pybatch.serve.settings import ServerSettings


def bind(settings: ServerSettings) -> socket.socket:
    """Before the model is loaded, so that a port in use is told at once. Raises OSError."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    bound = socket.socket(family)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((settings.host, settings.port))
    except OSError as error:
        bound.close()
        raise OSError(error.errno, error.strerror, f"{settings.host}:{settings.port}") from None
    return bound


def run(llm: AsyncLLM, settings: ServerSettings, bound: socket.socket, announce: Callable[[str], object]) -> None:
    """Serves until a signal ends it. announce: gets the server's address once it listens."""
    app = create_app(Service(llm, settings))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=75))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    bound.listen(2048)
    announce(f"http://{host}:{bound.getsockname()[1]}")
    server.run(sockets=[bound])
