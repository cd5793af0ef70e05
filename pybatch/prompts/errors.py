"""What is wrong with a prompt, and where."""

from __future__ import annotations

from dataclasses import dataclass


class PromptError(ValueError):
    """A prompt that cannot be used, or values that it cannot be filled in with.

    file: whose text is at fault, "" for none. line, column: where, from 1; None where that is not known. row: the
    number, from 0, of the row whose values are at fault; None for the prompt itself. variable: that is at fault.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str = "",
        line: int | None = None,
        column: int | None = None,
        row: int | None = None,
        variable: str | None = None,
    ) -> None:
        self.message, self.file, self.line, self.column = message, file, line, column
        self.row, self.variable = row, variable
        super().__init__(f"{self.place}: {message}" if self.place else message)

    @property
    def place(self) -> str:
        parts = (("row", self.row), ("", self.file or None), ("line", self.line), ("column", self.column))
        return ", ".join(f"{name} {value}".strip() for name, value in parts if value is not None)

    def of_row(self, row: int) -> PromptError:
        """The same, of a row's values."""
        return PromptError(
            self.message, file=self.file, line=self.line, column=self.column, row=row, variable=self.variable
        )


@dataclass(frozen=True)
class Text:
    """A part of a file. file: its name, for messages. line, column: where the part begins, from 1. indent: spaces that
    each further line has in the file, and not in the text."""

    file: str
    text: str
    line: int = 1
    column: int = 1
    indent: int = 0

    def position(self, offset: int) -> tuple[int, int]:
        """The line and column of a character of the text."""
        lines = self.text.count("\n", 0, offset)
        column = offset - self.text.rfind("\n", 0, offset)
        return self.line + lines, column + (self.indent if lines else self.column - 1)

    def error(self, message: str, offset: int) -> PromptError:
        line, column = self.position(offset)
        return PromptError(message, file=self.file, line=line, column=column)

    def part(self, start: int, end: int | None = None) -> Text:
        line, column = self.position(start)
        return Text(self.file, self.text[start:end], line, column, self.indent)

    def stripped(self) -> Text:
        """Without white space at its ends."""
        start = len(self.text) - len(self.text.lstrip())
        return self.part(start, max(start, len(self.text.rstrip())))
