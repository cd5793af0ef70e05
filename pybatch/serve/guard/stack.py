"""The guard's parts, in their order."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from pybatch.serve.guard.authentication import Accounts, Authentication
from pybatch.serve.guard.bodies import BodyLimits
from pybatch.serve.guard.keys import Keys
from pybatch.serve.guard.lifetime import Lifetime, OpenRequests
from pybatch.serve.guard.origins import Origins
from pybatch.serve.guard.rates import RateLimits
from pybatch.serve.settings import ServerSettings

UPLOADS = frozenset({"/v1/files", "/v1/messages/batches"})
TOLD = ["Retry-After", "request-id", "x-request-id"] + [
    f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")
]


def guard(app: FastAPI, settings: ServerSettings, keys: Keys, requests: OpenRequests, *, local: bool) -> None:
    """Puts the guard around the application. local: it can be reached on this machine alone."""
    app.add_middleware(RateLimits)  # the innermost one
    app.state.accounts = Accounts(keys, settings.limits)
    app.add_middleware(Authentication, accounts=app.state.accounts, metrics_open=settings.metrics_without_key)
    if not keys and settings.uds is None:
        app.add_middleware(Origins, allowed=settings.allowed_origins or (), local=local)
    app.add_middleware(
        BodyLimits, max_size=settings.max_body_size, max_file_size=settings.max_file_size, uploads=UPLOADS
    )
    app.add_middleware(Lifetime, requests=requests, timeout=settings.request_timeout)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=TOLD,
        )
