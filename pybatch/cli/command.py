"""What the commands share: errors, and the model that the flags name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from pybatch.cli import exit_codes

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.engine import SamplingParams

stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class UsageError(typer.TyperException):
    """What the caller can put right."""

    exit_code = exit_codes.USAGE


class CommandError(typer.TyperException):
    """The command cannot go on."""

    def __init__(self, message: str, exit_code: int = exit_codes.FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turns errors of arguments, files and models into a UsageError of one line."""
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more
        raise
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}" if error.filename else str(error)) from error
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error


def load(engine: EngineFlags, sampling: SamplingFlags) -> tuple[LLM, SamplingParams]:
    """Raises UsageError for flags or a model that cannot be used, CommandError where memory runs out."""
    from pybatch.api.llm import LLM
    from pybatch.engine import SamplingParams

    leave_deleted_folder()
    with usage_errors():
        params = SamplingParams(**{"max_tokens": None, **sampling.given()})
        try:
            llm = LLM(**engine.given())
        except (MemoryError, RuntimeError) as error:  # torch has a RuntimeError for memory that it was refused
            raise CommandError(f"{engine.model}: the model cannot be loaded: {one_line(error)}") from error
        return llm, params


def leave_deleted_folder() -> None:
    """Torch's MKL ends the process where the working folder has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def one_line(error: BaseException) -> str:
    """The kind of an error and the first line of what it says."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
