from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from pybatch.serve.merge import merge


async def counted(name: str, count: int, closed: list[str], fail: bool = False) -> AsyncIterator[str]:
    try:
        for i in range(count):
            await asyncio.sleep(0)
            yield f"{name}{i}"
        if fail:
            raise ValueError(name)
    finally:
        closed.append(name)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_every_item_comes_with_its_iterator_s_number_in_order(names: str) -> None:
    async def run() -> list[tuple[int, str]]:
        return [item async for item in merge([counted(name, 3, []) for name in names])]

    got = asyncio.run(run())
    for number, name in enumerate(names):
        assert [item for of, item in got if of == number] == [f"{name}{i}" for i in range(3)]
    assert len(got) == 3 * len(names)


@pytest.mark.parametrize("names", ["a", "abc"])
def test_all_are_closed_when_the_loop_is_left_or_one_raises(names: str) -> None:
    async def leave(closed: list[str]) -> None:
        merged = merge([counted(name, 3, closed) for name in names])
        await anext(merged)
        await merged.aclose()

    async def fail(closed: list[str]) -> None:
        async for _ in merge([counted(name, i, closed, fail=i == 0) for i, name in enumerate(names)]):
            pass

    left: list[str] = []
    asyncio.run(leave(left))
    assert sorted(left) == list(names)
    failed: list[str] = []
    with pytest.raises(ValueError, match="a"):
        asyncio.run(fail(failed))
    assert sorted(failed) == list(names)
