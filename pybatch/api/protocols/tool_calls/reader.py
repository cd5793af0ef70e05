"""Finds the calls in a text that comes in pieces."""

from __future__ import annotations

from pybatch.api.protocols.tool_calls.call import CallForm, Found, ToolCall, Tools, Unread
from pybatch.api.protocols.tool_calls.marks import Marks

Part = str | ToolCall

LONG = 256  # characters of a call that has begun, from which on it is read again only when a sixteenth more has come


class CallReader:
    """Takes a text apart into calls and the text around them, the same wherever its pieces begin and end.

    Text that may turn out to begin a call is held back. A call that is not complete, is not proper or has none of the
    tools' names stays text; whitespace beside calls is left out.

    hidden: texts to leave out. before: what the text goes on with, which may end in the beginning of a call. most: the
    number of calls after which others are left out.
    """

    def __init__(
        self, form: CallForm, tools: Tools, *, hidden: Marks | None = None, before: str = "", most: int | None = None
    ) -> None:
        self._form, self._tools, self._hidden, self._room = form, tools, hidden, most
        self._marks = Marks(form.marks)
        self._unfinished = ""  # what may begin a hidden text
        self._held = ""
        self._said = False  # something besides whitespace
        self._after_call = False
        self._enough = 0  # characters to hold before what is held is read again
        self._before = 0  # characters at the beginning of what is held that are not of the text
        if before:
            self.add(before)
            self._before, self._after_call = len(self._held), False

    def add(self, text: str) -> list[Part]:
        """What is settled of the text, with more of it."""
        self._take_in(text)
        return [] if len(self._held) < self._enough else self._settled(last=False)

    def end(self) -> list[Part]:
        """The rest: there is no more."""
        self._take_in("", last=True)
        return self._settled(last=True)

    def _take_in(self, text: str, *, last: bool = False) -> None:
        if self._hidden is not None:
            text, self._unfinished = self._hidden.take_out(self._unfinished + text, last=last)
        self._held += text

    def _settled(self, *, last: bool) -> list[Part]:
        parts: list[Part] = []
        self._enough = 0
        while self._held:
            begin = self._next_call()
            space = len(self._held) if last and begin is None else self._space_before(begin)
            self._say(space, parts)
            if begin is None:
                break
            begin -= space
            read = self._form.read(self._held[begin:], self._tools, last=last)
            if read is Unread.MORE and not last:
                self._enough = len(self._held) + (0 if len(self._held) < LONG else len(self._held) // 16)
                break
            if isinstance(read, Found):
                parts += read.calls[: self._room]
                if self._room is not None:
                    self._room = max(0, self._room - len(read.calls))
                self._take(begin + read.end)
                self._said = self._after_call = True
            else:
                self._say(begin + 1, parts)
        return parts

    def _next_call(self) -> int | None:
        """Where in what is held a call may begin."""
        if not self._said:
            first = len(self._held) - len(self._held.lstrip())
            if self._held.startswith(self._form.first_marks, first):
                return first
        return self._marks.find(self._held)

    def _space_before(self, begin: int | None) -> int:
        """Where the whitespace before a call, or before what may begin one, begins."""
        end = len(self._held) - self._marks.unfinished(self._held) if begin is None else begin
        return len(self._held[:end].rstrip())

    def _say(self, count: int, parts: list[Part]) -> None:
        """Gives out so many characters as text."""
        self._said = self._said or not (not count or self._held[:count].isspace())
        text = self._take(count)
        if self._after_call:
            text = text.lstrip()
        if text:
            self._after_call = False
            parts.append(text)

    def _take(self, count: int) -> str:
        """So many characters of what is held, as far as they are of the text."""
        skipped = min(self._before, count)
        self._before -= skipped
        taken, self._held = self._held[skipped:count], self._held[count:]
        return taken
