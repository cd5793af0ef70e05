"""What the commands share: exit codes, errors of usage, and the model that the flags name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.engine import SamplingParams

EXIT_FAILED_ROWS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class UsageError(typer.TyperException):
    exit_code = EXIT_USAGE


@contextmanager
def usage_errors() -> Iterator[None]:
    """What the caller can put right becomes one line."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except ValueError as error:
        raise UsageError(str(error)) from error


def load(engine: EngineFlags, sampling: SamplingFlags) -> tuple[LLM, SamplingParams]:
    from pybatch.api.llm import LLM
    from pybatch.engine import SamplingParams

    with usage_errors():
        params = SamplingParams(**{"max_tokens": None, **sampling.given()})
        return LLM(**engine.given()), params
