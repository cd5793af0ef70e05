from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be found, read or run here; the message says in one line why, and what would do."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class PromptTooLongError(ValueError):
    """A prompt that does not fit into the context."""

    code = "context_length_exceeded"


def one_line(text: str) -> str:
    """Text out of files, fit for a terminal: in one line, and control characters in the escapes of Python."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
