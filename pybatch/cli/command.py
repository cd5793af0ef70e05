"""What the commands share: errors, and the model that the flags name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from pybatch.cli import exit_codes
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.api.session import Session
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.engine import SamplingParams

stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
NOTHING_ANSWERED = "Interrupted while the model was loaded: nothing was answered."
WIDTH = 160  # of tables on standard output, where that is no terminal


def stdout() -> Console:
    """Of standard output as it now is."""
    width = None if Console().is_terminal else WIDTH
    return Console(highlight=False, markup=False, soft_wrap=True, width=width)


class UsageError(typer.TyperException):
    """An error that the caller can put right."""

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
        raise UsageError(of_file(error)) from error
    except (ValueError, OverflowError) as error:
        raise UsageError(str(error)) from error


def load(engine: EngineFlags, sampling: SamplingFlags) -> tuple[LLM, SamplingParams]:
    """Raises UsageError for flags or a model that cannot be used, CommandError where memory runs out."""
    leave_deleted_folder()
    with usage_errors(), loading_errors(engine.model):
        from pybatch.api.llm import LLM
        from pybatch.engine import SamplingParams

        SamplingParams(
            **{"max_tokens": None, **sampling.given()}
        )  # what is wrong with them shows before the model loads
        llm = LLM(**engine.given())
        tell_of(llm.session, engine.model)
        params = replace(llm.get_default_sampling_params(), **sampling.given())
        if llm.engine.decoder.config.generates:
            # Parameters that this model can run with no prompt (a token id outside its vocabulary) are refused here.
            llm.engine.add_request("flags", [0], params)
            llm.engine.abort("flags")
        return llm, params


def tell_of(session: Session, model: str | Path) -> None:
    """What was chosen for a model that has been loaded, and what would be faster."""
    if session.tuned is not None:
        stderr.print(str(session.tuned))
    if session.unpacked:
        tell_unpacked(model)


def tell_unpacked(model: str | Path) -> None:
    name = printable(Path(model).name)
    stderr.print(
        f"{name} is unpacked to float32: --quantization gguf (the file's own bits) or int8 "
        "is about 2 to 6 times as fast, and takes less memory."
    )


def named(engine: EngineFlags, model: str | None, context: typer.Context) -> EngineFlags:
    """With the model that an argument of the command names. Raises UsageError if --model names one too."""
    if model is None:
        return engine
    if is_given(context, "model"):
        raise UsageError(f"expected MODEL or --model, not both, got {model} and {engine.model}")
    return replace(engine, model=model)


def is_given(context: typer.Context, option: str) -> bool:
    source = context.get_parameter_source(option)
    return source is not None and source.name != "DEFAULT"


@contextmanager
def loading_errors(model: str) -> Iterator[None]:
    """Turns what the loader does not foresee into one line: a CommandError for the machine's faults (a library that
    cannot be mapped is an ImportError, or an OSError without a number), a UsageError for the model's."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, ValueError | OverflowError)
        if known or (isinstance(error, OSError) and error.errno not in (None, errno.ENOMEM)):
            raise
        message = f"{model}: the model cannot be loaded: {one_line(error)}"
        if isinstance(error, ImportError | OSError):
            raise CommandError(message) from error
        from pybatch.machine.faults import is_machine_fault

        raise (CommandError if is_machine_fault(error) else UsageError)(message) from error


def leave_deleted_folder() -> None:
    """Torch's MKL ends the process if the working folder has been deleted."""
    try:
        os.getcwd()
    except FileNotFoundError:
        os.chdir("/")


def of_file(error: OSError) -> str:
    """The file, where it is known, and what is wrong with it."""
    reason = error.strerror or str(error)
    return reason if error.filename is None else f"{error.filename}: {reason}"


def one_line(error: BaseException) -> str:
    """The error's type and the first line of its message."""
    message = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
