"""Only requests with a key reach a route."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

from pybatch.api.outcomes import Failure
from pybatch.serve.guard.keys import Keys
from pybatch.serve.guard.refusal import refuse
from pybatch.serve.limits import Account, Limits, payer
from pybatch.serve.watched import CURRENT

OPEN = frozenset({"/health", "/ready"})
PAGE = "/page/"  # the live page's scripts and styles, which hold no secret; what they read from the server needs a key


class Accounts:
    """One for each key.

    limits: of all requests together, where there are no keys.
    """

    def __init__(self, keys: Keys, limits: Limits) -> None:
        self.keys = keys
        self.everyone = Account("everyone", limits)
        self.of_keys = {key: Account(key.name, key.limits, user=key.name) for key in keys.keys}

    def find(self, offered: Iterable[bytes]) -> Account | None:
        """None if a key is needed and none of the offered ones is right."""
        if not self.keys:
            return self.everyone
        key = self.keys.find(offered)
        return None if key is None else self.of_keys[key]


class Authentication:
    """Answers 401 to a request without one of the keys, and makes the key's account the request's payer.

    metrics_open: whether /metrics needs none.
    """

    def __init__(self, app: ASGIApp, accounts: Accounts, *, metrics_open: bool) -> None:
        self.app, self.accounts = app, accounts
        self.open = OPEN | {"/metrics"} if metrics_open else OPEN

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self.is_open(scope):
            await self.app(scope, receive, send)
            return
        account = self.accounts.find(offered(scope))
        if account is None:
            await refuse(scope, receive, send, 401, unauthorised(scope), {"WWW-Authenticate": "Bearer"})
            return
        if self.accounts.keys and (watched := CURRENT.get()) is not None:
            watched.key = account.name
        payer.set(account)
        await self.app(scope, receive, send)

    def is_open(self, scope: Scope) -> bool:
        path = scope["path"]
        return path in self.open or (scope["method"] in ("GET", "HEAD") and (path == "/" or path.startswith(PAGE)))


def offered(scope: Scope) -> Iterator[bytes]:
    """OpenAI's clients send ``Authorization: Bearer KEY``, Anthropic's ``x-api-key: KEY``."""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            yield value.strip()
        elif name == b"authorization":
            scheme, _, key = value.partition(b" ")
            if scheme.lower() == b"bearer":
                yield key.strip()


def unauthorised(scope: Scope) -> Failure:
    if any(True for _ in offered(scope)):
        return Failure("the API key is not one that this server takes", "invalid_api_key")
    return Failure("expected an API key: Authorization: Bearer KEY, or x-api-key: KEY", "invalid_api_key")
