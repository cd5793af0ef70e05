"""Calls of the tokenizers library, which raises bare Exceptions and panics where a file or a text surprises it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def guarded(call: Callable[[], Any]) -> Any:
    """What the call returns. Whatever else it raises is a ValueError here, a panic of the tokenizers library too."""
    try:
        return call()
    except (ValueError, TypeError):
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # the latter cannot be imported
            raise ValueError(f"the tokenizer failed: {error}") from error
        raise
