"""Requests within their key's limits, and answers that tell how much is left of these."""

from __future__ import annotations

import math
from collections.abc import Iterator

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pybatch.api.outcomes import Failure
from pybatch.serve.guard.refusal import refuse
from pybatch.serve.limits import Account, Bucket, payer

BUSY_SECONDS = 1.0  # until a client tries again that has as many requests running as it may


class RateLimits:
    """Answers 429 to a POST of an account that has used up a limit. Reading is free, as the live page does it
    all the time.

    Tokens are charged by the service as they are used, which may overdraw a limit: the next request then waits longer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        account = payer.get()

        async def send_with_state(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(raw=message["headers"]).update(dict(state(account)))
            await send(message)

        excess = excess_of(account)
        if excess is not None:
            limit, wait = excess
            failure = Failure(f"{limit}; try again in {wait:.3g} s", "rate_limit_exceeded")
            headers = {"Retry-After": str(math.ceil(wait)), "retry-after-ms": str(math.ceil(1000 * wait))}
            await refuse(scope, receive, send_with_state, 429, failure, headers)
            return
        if account.requests is not None:
            account.requests.charge(1)
        account.running += 1
        try:
            await self.app(scope, receive, send_with_state)
        finally:
            account.running -= 1


def excess_of(account: Account) -> tuple[str, float] | None:
    """The limit that is used up, in words, and the seconds until it is not."""
    limits = account.limits
    if limits.max_concurrent_requests is not None and account.running >= limits.max_concurrent_requests:
        return f"the limit of {limits.max_concurrent_requests} requests at a time is reached", BUSY_SECONDS
    for bucket, what in ((account.requests, "requests"), (account.tokens, "tokens")):
        if bucket is not None and bucket.wait > 0:
            return f"the limit of {bucket.per_minute} {what} a minute is reached", bucket.wait
    return None


def state(account: Account) -> Iterator[tuple[str, str]]:
    """OpenAI's headers."""
    for bucket, what in ((account.requests, "requests"), (account.tokens, "tokens")):
        if bucket is not None:
            yield from headers_of(bucket, what)


def headers_of(bucket: Bucket, what: str) -> Iterator[tuple[str, str]]:
    yield f"x-ratelimit-limit-{what}", str(bucket.per_minute)
    yield f"x-ratelimit-remaining-{what}", str(bucket.remaining)
    yield f"x-ratelimit-reset-{what}", f"{bucket.reset:.3f}s"
