"""The application: every route and what lies around them."""

from __future__ import annotations

from fastapi import FastAPI

import pybatch
from pybatch.serve.errors import handle_errors
from pybatch.serve.guard.keys import Keys
from pybatch.serve.guard.stack import guard
from pybatch.serve.request_ids import RequestIds
from pybatch.serve.routes import chat, completions, health, messages, models
from pybatch.serve.service import Service

ROUTERS = (chat.router, completions.router, messages.router, models.router, health.router)


def create_app(service: Service, keys: Keys | None = None, *, local: bool = True) -> FastAPI:
    """keys: those that open it; None: it is open to all. local: it can be reached on this machine alone."""
    app = FastAPI(title="pybatch", version=pybatch.__version__)
    app.state.service = service
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    guard(app, service.settings, keys or Keys(), service.requests, local=local)
    app.add_middleware(RequestIds)  # the outermost one
    return app
