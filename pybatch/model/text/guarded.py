"""Calls of the tokenizers library, which raises bare Exceptions and panics where a file or a text surprises it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def guarded(call: Callable[[], Any]) -> Any:
    """Returns what the call returns. Raises ValueError for its other exceptions and for a panic of the library."""
    try:
        return call()
    except (ValueError, TypeError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # the latter cannot be imported
            raise ValueError(f"the tokenizer failed: {error}") from error
        raise
