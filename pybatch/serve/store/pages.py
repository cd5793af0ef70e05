"""Pages of a list."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pybatch.serve.errors import NotFoundError
from pybatch.serve.store.database import Database

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """has_more: there are others behind the last item, or, of a page before some item, in front of the first one."""

    items: list[T]
    has_more: bool


@dataclass(frozen=True)
class Cut:
    """Which part of a list is asked for. after, before: the id of an item that the page begins behind, or ends in front
    of. newest_first: the order of the list."""

    limit: int
    after: str | None = None
    before: str | None = None
    newest_first: bool = True


def page(database: Database, table: str, where: Mapping[str, Any], cut: Cut, also: str = "1") -> Page[sqlite3.Row]:
    """where: values of columns. also: a further condition. Raises NotFoundError if there is no item of the id."""
    conditions, values = [also, *(f"{column} = ?" for column in where)], list(where.values())
    backwards = cut.before is not None
    for id, behind in ((cut.after, True), (cut.before, False)):
        if id is not None:
            found = database.rows(f"SELECT number FROM {table} WHERE id = ?", [id])
            if not found:
                raise NotFoundError(f"{'after' if behind else 'before'}: there is no {id!r:.80}", "not_found")
            conditions.append(f"number {'<' if behind == cut.newest_first else '>'} ?")
            values.append(found[0]["number"])
    order = "DESC" if cut.newest_first != backwards else "ASC"
    query = f"SELECT * FROM {table} WHERE {' AND '.join(conditions)} ORDER BY number {order} LIMIT ?"
    rows = database.rows(query, [*values, cut.limit + 1])
    kept = rows[: cut.limit]
    return Page(kept[::-1] if backwards else kept, len(rows) > cut.limit)
