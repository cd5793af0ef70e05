from __future__ import annotations

import os
import pty
import select
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pybatch.cli.question import WAIT, Asker


@contextmanager
def terminal(typed: str = "") -> Iterator[int]:
    """A terminal that standard input and error are on, by our end of it."""
    ours, theirs = pty.openpty()
    saved = os.dup(0), os.dup(2)
    os.dup2(theirs, 0)
    os.dup2(theirs, 2)
    os.write(ours, typed.encode())
    try:
        yield ours
    finally:
        os.dup2(saved[0], 0)
        os.dup2(saved[1], 2)
        for fd in (ours, theirs, *saved):
            os.close(fd)


def expect_asked(ours: int, times: int = 1) -> None:
    shown = b""
    while shown.count(b"Go on? [Y/n] ") < times:  # what was typed may stand before, between or after
        assert select.select([ours], [], [], 10)[0]
        shown += os.read(ours, 4096)


@pytest.mark.parametrize(
    ("typed", "agrees"),
    [("\n", True), ("y\n", True), (" YES \n", True), ("n\n", False), ("No\n", False), ("\x04", False)],
)
def test_answers(typed: str, agrees: bool) -> None:
    with terminal(typed) as ours:
        assert Asker().agrees("Go on?") is agrees
        expect_asked(ours)


def test_what_is_no_answer_is_asked_again() -> None:
    stops = iter([False, False, True])
    with terminal("perhaps\n") as ours:
        assert not Asker().agrees("Go on?", lambda: next(stops))
        expect_asked(ours, times=2)


def test_a_signal_ends_the_wait_which_is_timed() -> None:
    stops = iter([False, False, False, True])
    with terminal():
        asker = Asker()
        assert not asker.agrees("Go on?", lambda: next(stops))
    assert asker.seconds >= 3 * WAIT


def test_the_terminal_is_the_one_of_the_start() -> None:
    with terminal("n\n"):
        asker = Asker()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        assert not asker.agrees("Go on?")


def test_where_there_is_no_terminal_it_goes_on() -> None:
    assert Asker().agrees("Go on?")
