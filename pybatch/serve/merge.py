"""Several asynchronous iterators as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def merge(iterators: Sequence[AsyncIterator[T]]) -> AsyncGenerator[tuple[int, T], None]:
    """Yields each item with its iterator's number, as they come. Raises what one of them raises. All are closed when
    the loop is left."""
    if len(iterators) == 1:
        only = iterators[0]
        try:
            async for item in only:
                yield 0, item
        finally:
            await close(only)
        return
    tasks: dict[asyncio.Future[T], int] = {}
    try:
        tasks = {next_of(iterator): number for number, iterator in enumerate(iterators)}
        while tasks:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                number = tasks.pop(task)
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                tasks[next_of(iterators[number])] = number
                yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for iterator in iterators:
            await close(iterator)


def next_of(iterator: AsyncIterator[T]) -> asyncio.Future[T]:
    async def following() -> T:
        return await anext(iterator)

    return asyncio.ensure_future(following())


async def close(iterator: AsyncIterator[T]) -> None:
    aclose = getattr(iterator, "aclose", None)
    if aclose is not None:
        await aclose()
