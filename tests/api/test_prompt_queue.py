from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from pybatch.api.prompt_queue import PromptQueue


@dataclass(eq=False)
class Item:
    name: str
    user: str | None = None
    priority: int = 0
    size: float = 1
    target: float | None = None
    queued: int = 0

    @property
    def urgent(self) -> bool:
        return self.target is not None

    @property
    def deadline(self) -> float:
        return 60.0 if self.target is None else self.target


def taken(queue: PromptQueue[Item]) -> str:
    names = []
    while (item := queue.take(wait=False)) is not None:
        names.append(item.name)
    return "".join(names)


def test_better_priorities_are_first_then_users_in_turn_then_deadlines() -> None:
    queue = PromptQueue[Item](100, {})
    for item in (
        *(Item(name, "many") for name in "abcd"),
        Item("e", "few"),
        Item("f", "few", target=1.0),
        Item("g", priority=3),
        Item("h", priority=-1),
    ):
        queue.put(item)
    assert taken(queue) == "hafbecdg"


def test_a_long_prompt_counts_more_and_a_heavy_user_is_served_more() -> None:
    queue = PromptQueue[Item](100, {"heavy": 3.0})
    for item in (*(Item("h", "heavy") for _ in range(9)), *(Item("l", "light") for _ in range(3))):
        queue.put(item)
    assert taken(queue)[:8].count("h") == 6
    for item in (Item("A", "long", size=5), *(Item("B", "long"),), *(Item("c", "short") for _ in range(4))):
        queue.put(item)
    assert taken(queue) == "AccccB"


def test_what_is_withdrawn_does_not_come() -> None:
    queue = PromptQueue[Item](100, {})
    items = [
        Item(name, user, target=target) for name, user, target in zip("abcd", "uuvv", (None, 1.0) * 2, strict=True)
    ]
    for item in items:
        queue.put(item)
    queue.withdraw(items[1])
    queue.withdraw(items[1])
    queue.withdraw(Item("e", priority=7))
    assert sorted(taken(queue)) == ["a", "c", "d"]


def test_who_waits_gets_what_comes_and_nothing_once_it_is_closed() -> None:
    queue, got = PromptQueue[Item](100, {}), []

    def take() -> None:
        while (item := queue.take()) is not None:
            got.append(item.name)

    thread = threading.Thread(target=take)
    thread.start()
    for name in "ab":
        queue.put(Item(name))
        time.sleep(0.02)
    queue.close()
    thread.join(10)
    assert not thread.is_alive()
    assert got == ["a", "b"]
    queue.put(Item("late"))
    assert queue.take() is None


def test_of_a_kind_so_many_are_out_and_others_come_when_these_have_left() -> None:
    queue = PromptQueue[Item](2, {})
    mine = [Item(name, "me") for name in "abcde"]
    urgent = [Item(name, "me", target=target) for name, target in zip("xyz", (3.0, 2.0, 1.0), strict=True)]
    for item in (*mine, *urgent, Item("o", "other")):
        queue.put(item)
    assert sorted(taken(queue)) == sorted("abxyo")
    queue.leave(mine[0])
    queue.leave(mine[0])
    assert taken(queue) == "c"
    queue.withdraw(mine[1])  # it is out
    queue.withdraw(mine[3])
    assert taken(queue) == ""
    queue.leave(mine[1])
    queue.leave(urgent[0])
    assert sorted(taken(queue)) == ["e", "z"]
    for item in (*mine, *urgent):
        queue.leave(item)
    queue.put(first := Item("1", "me"))
    queue.put(Item("2", "me"))
    queue.put(Item("3", "me"))
    queue.withdraw(first)  # it has a place, and is not out
    assert taken(queue) == "23"
