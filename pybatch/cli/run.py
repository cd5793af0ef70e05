"""pybatch run: a file of prompts in, a file of answers out."""

from __future__ import annotations

import sys
from enum import StrEnum
from typing import Annotated

import typer

from pybatch.cli.command import EXIT_FAILED_ROWS, EXIT_INTERRUPTED, UsageError, load, stderr, usage_errors
from pybatch.cli.flags import EngineFlags, SamplingFlags, takes


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
    --prompt-template names; in a text file it is a line. Text is put to the model as a user's message where the model
    has a chat template; --raw has it completed as it is.

    A result is the row's own fields and: "row", its number from 0, since results come in the order in which they
    finish; "response"; "finish_reason"; "usage" with "prompt_tokens" and "completion_tokens"; with --logprobs and
    --prompt-logprobs, these. With -n, "response" and "finish_reason" are lists. A row that cannot be answered has
    "error" instead, and the others go on. A field of the row that has one of these names is kept as "input_response"
    and so on.

    Exit code: 0; 1 if rows failed; 2 for wrong usage; 130 after Ctrl-C, which keeps the results so far.
    """
    from pybatch.api.llm import most_output_tokens
    from pybatch.api.progress import BatchProgress, ProgressReporter
    from pybatch.jobs.files import STANDARD, expect_free, measure, open_results, open_rows
    from pybatch.jobs.prompts import PromptMaker, Template
    from pybatch.jobs.reader import read_rows
    from pybatch.jobs.row_runner import run_job
    from pybatch.jobs.summary import summary_table

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
    progress = BatchProgress(llm.engine.metrics, rows, size, max_output_tokens=most_output_tokens(params))
    interrupted = False
    bar = output != STANDARD or not sys.stdout.isatty()  # rows and a bar on one terminal would be in each other's way
    try:
        with lines, results, ProgressReporter("Answering", progress, lines=True, bar=bar):
            run_job(llm, read_rows(lines, format.value), PromptMaker(template, system, chat), params, results, progress)
    except KeyboardInterrupt:
        interrupted = True
    except OSError as error:
        raise typer.TyperException(f"{output}: {error.strerror}; {progress.rows_done:,} rows are saved") from error
    stderr.print(summary_table(progress, llm.engine.metrics.summary()))
    if interrupted:
        stderr.print(f"Interrupted: {progress.rows_done:,} rows are done and saved in {output}.")
        raise typer.Exit(EXIT_INTERRUPTED)
    if progress.rows_failed:
        stderr.print(
            f'{progress.rows_failed:,} of {progress.rows_done:,} rows failed: each has an "error" in {output}.'
        )
        raise typer.Exit(EXIT_FAILED_ROWS)
