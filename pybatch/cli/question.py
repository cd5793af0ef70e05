"""A question to the user in the middle of a command whose standard input is otherwise used."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

ANSWERS = {"": True, "y": True, "yes": True, "n": False, "no": False}
WAIT = 0.1  # seconds between two checks of `stopped`


class Asker:
    """Asks on the terminal that standard input and error are on when it is made; elsewhere it has nobody to ask.

    seconds: that it has waited for answers.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        try:
            self._terminal = os.dup(0) if os.isatty(0) and os.isatty(2) else None
        except OSError:
            self._terminal = None

    def agrees(self, question: str, stopped: Callable[[], bool] = lambda: False) -> bool:
        """The answer, by default yes; yes too where nobody can be asked. False if the terminal is closed or once
        `stopped` returns True: a signal does not end the wait for a line."""
        while self._terminal is not None:
            os.write(2, f"{question} [Y/n] ".encode(errors="replace"))
            line = self._line(self._terminal, stopped)
            if line is None:
                return False
            if (answer := ANSWERS.get(line.strip().lower())) is not None:
                return answer
        return True

    def _line(self, terminal: int, stopped: Callable[[], bool]) -> str | None:
        """A terminal gives whole lines."""
        begin = time.perf_counter()
        try:
            while not stopped():
                if select.select([terminal], [], [], WAIT)[0]:
                    line = os.read(terminal, 4096)
                    return line.decode(errors="replace") if line else None
        except OSError:  # closed
            pass
        finally:
            self.seconds += time.perf_counter() - begin
        return None
