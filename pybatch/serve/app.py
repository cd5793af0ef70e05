"""The application: every route and what lies around them."""

from __future__ import annotations

from fastapi import FastAPI

import pybatch
from pybatch.serve.errors import handle_errors
from pybatch.serve.routes import chat, health, models
from pybatch.serve.service import Service

ROUTERS = (chat.router, models.router, health.router)


def create_app(service: Service) -> FastAPI:
    app = FastAPI(title="pybatch", version=pybatch.__version__)
    app.state.service = service
    handle_errors(app)
    for router in ROUTERS:
        app.include_router(router)
    return app
