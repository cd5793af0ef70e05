"""The pybatch command: it parses, and calls what does the work."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

import pybatch
from pybatch.flags import EngineFlags, SamplingFlags, takes

if TYPE_CHECKING:
    from pybatch.engine import SamplingParams
    from pybatch.llm import LLM

EXIT_FAILED_ROWS = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode="markdown")
stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)


class UsageError(typer.TyperException):
    exit_code = EXIT_USAGE


class InputFormat(StrEnum):
    jsonl = "jsonl"
    text = "text"


def main() -> None:
    """Exits with 0, 1 (some rows failed), 2 (usage) or 130 (Ctrl-C)."""
    try:
        sys.exit(app(prog_name="pybatch", standalone_mode=False))
    except typer.TyperException as error:
        if message := error.format_message():
            print(f"pybatch: {message}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(EXIT_INTERRUPTED)


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
    from pybatch.engine import SamplingParams
    from pybatch.llm import LLM

    with usage_errors():
        params = SamplingParams(**sampling.given())
        return LLM(**engine.given()), params


def print_version(wanted: bool) -> None:
    if wanted:
        print(pybatch.__version__)
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run language models over many prompts at once."""


@app.command()
@takes(sampling=SamplingFlags, engine=EngineFlags)
def run(
    prompts: Annotated[str, typer.Argument(help="The rows: a file, or - for standard input.", metavar="PROMPTS")],
    output: Annotated[str, typer.Option("--output", "-o", help="The results: a file, or - for standard output.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file if there is one.")] = False,
    input_format: Annotated[
        InputFormat | None, typer.Option(help="Default: text for a name that ends in .txt, else jsonl.")
    ] = None,
    prompt_template: Annotated[
        str | None, typer.Option(help="The prompt, with {field} where a row's field goes; {{ and }} are braces.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message in front of every conversation.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete prompts as they are, without the model's chat template.")
    ] = False,
    *,
    sampling: SamplingFlags,
    engine: EngineFlags,
) -> None:
    """Answer a file of prompts.

    A row is a JSON object with "messages" (a conversation) or "prompt" (text), or with the fields that
    --prompt-template names; in a text file it is a line. Text is put to the model as a user's message where the model
    has a chat template; --raw has it completed as it is.

    A result is the row's own fields and: "row", its number from 0, since results come in the order in which they
    finish; "response"; "finish_reason"; "usage" with "prompt_tokens" and "completion_tokens"; with --logprobs and
    --prompt-logprobs, these. With -n, "response" and "finish_reason" are lists. A row that cannot be answered has
    "error" instead, and the others go on. A field of the row that has one of these names is kept as "input_response"
    and so on.

    Exit code: 0; 1 if rows failed; 2 for wrong usage; 130 after Ctrl-C, which keeps the results so far.
    """
    from pybatch.jobs.files import STANDARD, expect_free, measure, open_results, open_rows
    from pybatch.jobs.prompts import PromptMaker, Template
    from pybatch.jobs.reader import read_rows
    from pybatch.jobs.runner import run_job
    from pybatch.jobs.summary import summary_table
    from pybatch.llm import most_output_tokens
    from pybatch.progress import Reporter, Work

    if raw and system is not None:
        raise UsageError("--system: a system message needs the chat template that --raw does without")
    format = input_format or (InputFormat.text if prompts.endswith(".txt") else InputFormat.jsonl)
    with usage_errors():
        template = None if prompt_template is None else Template(prompt_template)
        expect_free(output, overwrite=overwrite, rows=prompts)
        rows, size = measure(prompts)
        lines = open_rows(prompts)
        llm, params = load(engine, sampling)
        chat = not raw and llm.get_tokenizer().chat_template is not None
        if system is not None and not chat:
            raise UsageError(f"--system: {engine.model} has no chat template")
        results = open_results(output)
    work = Work(llm.engine.metrics, rows, size, max_output_tokens=most_output_tokens(params))
    interrupted = False
    bar = output != STANDARD or not sys.stdout.isatty()  # rows and a bar on one terminal would be in each other's way
    try:
        with lines, results, Reporter("Answering", work, lines=True, bar=bar):
            run_job(llm, read_rows(lines, format.value), PromptMaker(template, system, chat), params, results, work)
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        raise typer.TyperException(f"{output}: {error.strerror}; {work.rows_done:,} rows are saved") from error
    stderr.print(summary_table(work, llm.engine.metrics.summary()))
    if interrupted:
        stderr.print(f"Interrupted: {work.rows_done:,} rows are done and saved in {output}.")
        raise typer.Exit(EXIT_INTERRUPTED)
    if work.rows_failed:
        stderr.print(f'{work.rows_failed:,} of {work.rows_done:,} rows failed: each has an "error" in {output}.')
        raise typer.Exit(EXIT_FAILED_ROWS)


@app.command()
@takes(sampling=SamplingFlags, engine=EngineFlags)
def chat(
    system: Annotated[str | None, typer.Option(help="A system message to begin with.")] = None,
    *,
    sampling: SamplingFlags,
    engine: EngineFlags,
) -> None:
    """Talk with a model.

    /clear begins a new conversation, /exit (or Ctrl-D) leaves; Ctrl-C stops an answer. Where standard input is no
    terminal, all of it is one message, and the answer is printed.
    """
    from pybatch.chat import Chat, answer_once, converse

    llm, params = load(engine, sampling)
    conversation = Chat(llm, params, system)
    with usage_errors():
        if sys.stdin.isatty():
            converse(conversation)
        else:
            answer_once(conversation, sys.stdin.read())


@app.command()
def env(json_output: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Show versions, processor, instruction sets, memory and devices."""
    from pybatch.environment import facts, facts_table

    known = facts()
    if json_output:
        print(json.dumps(known, indent=2))
    else:
        Console(highlight=False).print(facts_table(known))
