"""pybatch run: a file of prompts in, a file of answers out."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from pybatch.cli import exit_codes
from pybatch.cli.command import CommandError, UsageError, load, one_line, stderr, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, takes
from pybatch.cli.signals import ending_at_once, ending_in_order, exit_code
from pybatch.cli.streams import printable

if TYPE_CHECKING:
    from pybatch.api.progress import BatchProgress


class InputFormat(StrEnum):
    jsonl = "jsonl"
    text = "text"


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
    --prompt-template names; in a text file it is a line. Text becomes a user's message where the model has a chat
    template; with --raw the model completes it as it is.

    A result is the row's own fields and: "row", its number from 0, since results come in the order in which they
    finish; "response"; "finish_reason"; "usage" with "prompt_tokens" and "completion_tokens"; with --logprobs and
    --prompt-logprobs, these. With -n, "response" and "finish_reason" are lists. A row that cannot be answered has
    "error" instead, and the others go on. A field of the row that has one of these names is kept as "input_response"
    and so on.

    Exit code: 0, all rows are answered; 1, some have errors; 2, wrong usage: arguments, files, a limit on their size,
    or a model that cannot be used; 3, the job could not go on: the disk, memory or a step of the model; 130 after
    Ctrl-C, 143 after SIGTERM; 141, nobody reads the results any more. Rows that have finished are in the results, all
    of them whole. A second Ctrl-C does not wait for the step under way.
    """
    from pybatch.api.progress import BatchProgress, ProgressReporter
    from pybatch.jobs.files import expect_apart, measure, open_results, open_rows, standard_streams_reserved
    from pybatch.jobs.prompts import PromptMaker
    from pybatch.jobs.read_ahead import ReadAhead
    from pybatch.jobs.reader import read_rows
    from pybatch.jobs.result_file import discard_unused_files
    from pybatch.jobs.template import Template

    if raw and system is not None:
        raise UsageError("--system: a system message needs the chat template that --raw does without")
    format = input_format or (InputFormat.text if prompts.endswith(".txt") else InputFormat.jsonl)
    with ending_at_once(discard_unused_files), ExitStack() as opened:
        with usage_errors():
            template = None if prompt_template is None else Template(prompt_template)
            expect_apart(output, rows=prompts, others=(engine.model, engine.given().get("tokenizer")))
            lines = open_rows(prompts)
            results = opened.enter_context(open_results(output, overwrite=overwrite))
            opened.enter_context(standard_streams_reserved())
            rows = ReadAhead(read_rows(lines, format.value), name=prompts)
            count, size = measure(prompts)
        llm, params = load(engine, sampling)
        chat = not raw and llm.get_tokenizer().chat_template is not None
        if system is not None and not chat:
            raise UsageError(f"--system: {engine.model} has no chat template")
        from pybatch.api.llm import most_output_tokens
        from pybatch.jobs.row_runner import run_job
        from pybatch.jobs.summary import summary_table

        progress = BatchProgress(llm.engine.metrics, count, size, max_output_tokens=most_output_tokens(params))
        make_prompt = PromptMaker(template, system, chat)
        with ending_in_order() as stop:
            with usage_errors():
                results.begin()
            bar = not results.isatty()  # which would be in the rows' way
            with job_errors(progress), ProgressReporter("Answering", progress, lines=True, bar=bar):
                run_job(llm, rows, make_prompt, params, results, progress, stop.requested)
            stderr.print(summary_table(progress, llm.engine.metrics.summary()))
            if stop.signum is not None:
                tell(f"Interrupted: {progress.rows_done:,} rows are done and saved in {output}.")
                raise typer.Exit(exit_code(stop.signum))
    if progress.rows_failed:
        tell(f'{progress.rows_failed:,} of {progress.rows_done:,} rows failed: each has an "error" in {output}.')
        raise typer.Exit(exit_codes.FAILED_ROWS)


@contextmanager
def job_errors(progress: BatchProgress) -> Iterator[None]:
    """Turns what ends a job before its time into one line, with the count of the rows that are saved."""
    try:
        yield
    except Exception as error:
        reason, code = f"the job cannot go on: {one_line(error)}", exit_codes.FAILED
        if isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}"
            code = {errno.EPIPE: exit_codes.BROKEN_PIPE, errno.EFBIG: exit_codes.USAGE}.get(error.errno or 0, code)
        raise CommandError(f"{reason}; {progress.rows_done:,} rows are saved", code) from error


def tell(message: str) -> None:
    stderr.print(printable(message))
