"""The queries of lists."""

from __future__ import annotations

from collections.abc import Mapping

from pybatch.api.protocols.request_error import RequestError
from pybatch.serve.store.pages import Cut


def cut(query: Mapping[str, str], *, default: int, most: int, after: str = "after", before: str = "") -> Cut:
    """default, most: of the limit. after, before: the names of the fields with ids. Raises RequestError."""
    return Cut(
        limit=limit(query, default, most),
        after=query.get(after),
        before=query.get(before) if before else None,
        newest_first=order(query) == "desc",
    )


def limit(query: Mapping[str, str], default: int, most: int) -> int:
    text = query.get("limit", str(default))
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0
    if not 1 <= number <= most:
        raise RequestError(f"limit: expected a number from 1 to {most:,}, got {text!r:.80}", "invalid_value", "limit")
    return number


def order(query: Mapping[str, str]) -> str:
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order: expected asc or desc, got {order!r:.80}", "invalid_value", "order")
    return order
