"""The application: every route and what lies around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

import pybatch
from pybatch.serve.errors import handle_errors
from pybatch.serve.guard.keys import Keys
from pybatch.serve.guard.stack import guard
from pybatch.serve.monitoring.monitoring import Monitoring
from pybatch.serve.no_route import NoRoute
from pybatch.serve.routes import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    message_batches,
    messages,
    metrics,
    models,
    page,
    profile,
    stats,
    tokens,
)
from pybatch.serve.service import Service

ROUTERS = (
    chat.router,
    completions.router,
    embeddings.router,
    tokens.router,
    messages.router,
    models.router,
    files.router,
    batches.router,
    message_batches.router,
    health.router,
    page.router,
    stats.router,
    metrics.router,
)


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service

    async def close() -> None:
        await asyncio.to_thread(service.batches.close)

    service.batches.start()
    service.at_shutdown.append(close)
    async with app.state.monitoring:
        yield
    await close()


def create_app(service: Service, keys: Keys | None = None, *, local: bool = True) -> FastAPI:
    """keys: those that open it; None: it is open to all. local: it can be reached on this machine alone."""
    app = FastAPI(
        title="pybatch",
        version=pybatch.__version__,
        lifespan=running,
        redirect_slashes=False,
        docs_url=None,  # these load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    app.state.monitoring = Monitoring(service)
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    if service.settings.profile is not None:
        app.include_router(profile.router)
    app.router.default = NoRoute(app.router)
    guard(app, service.settings, keys or Keys(), service.requests, local=local)
    return app
