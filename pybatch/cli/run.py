"""pybatch run: a file of prompts in, a file of answers out."""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pybatch.cli import exit_codes
from pybatch.cli.answering import Interruption, answer, cluster, local, tell
from pybatch.cli.command import CommandError, UsageError, usage_errors
from pybatch.cli.dry_run import show_dry_run
from pybatch.cli.flags import CostFlags, EngineFlags, SamplingFlags, argument, option, takes
from pybatch.cli.job_steps import open_jobs
from pybatch.cli.latitude_flags import LatitudeFlags
from pybatch.cli.preview import Preview
from pybatch.cli.prompt_flag import expect_some_good, with_prompt
from pybatch.cli.prompt_history import recording
from pybatch.cli.signals import ending_at_once
from pybatch.latitude.addresses import resolved

if TYPE_CHECKING:
    from pybatch.api.session import Session
    from pybatch.cluster.cluster_session import ClusterSession
    from pybatch.engine import SamplingParams
    from pybatch.jobs.report.files import ReportFiles
    from pybatch.jobs.results.destination import Destination

rows = partial(option, "Rows")
results = partial(option, "Results")
going_on = partial(option, "Going on")
running = partial(option, "Before and during")
machines = partial(option, "Many machines")


class InputFormat(StrEnum):
    jsonl = "jsonl"
    json = "json"
    csv = "csv"
    tsv = "tsv"
    text = "text"
    parquet = "parquet"


class RowFormat(StrEnum):
    rows = "rows"
    openai_batch = "openai-batch"
    anthropic_batch = "anthropic-batch"


class OnError(StrEnum):
    skip = "skip"
    fail = "fail"


@takes(sampling=SamplingFlags, engine=EngineFlags, cost=CostFlags, latitude=LatitudeFlags)
def run(
    context: typer.Context,
    prompts: Annotated[
        str | None,
        argument("The rows: a file, a folder, a glob in quotes, - for standard input, or latitude:DATASET.", "PROMPTS"),
    ] = None,
    input_file: Annotated[
        str | None, rows("Another way to name PROMPTS.", "--input-file", "-i", metavar="PROMPTS")
    ] = None,
    input_format: Annotated[
        InputFormat | None, rows("Of the files. Default: by their names' endings, else jsonl.")
    ] = None,
    format: Annotated[RowFormat | None, rows("What a row holds. Default: what the first one does.")] = None,
    prompt_template: Annotated[
        str | None, rows("The prompt, with {field} where a row's field goes; {{ and }} are braces.")
    ] = None,
    prompt: Annotated[
        str | None,
        rows(
            "A prompt that rows fill in: a file, or a name in the folder prompts. It may set model and sampling.",
            metavar="FILE-OR-NAME",
        ),
    ] = None,
    system: Annotated[str | None, rows("A system message in front of every conversation.", callback=None)] = None,
    raw: Annotated[bool, rows("Complete prompts as they are, without the model's chat template.", "--raw")] = False,
    output: Annotated[
        str | None,
        results("The results: a file, - for standard output, or latitude:DATASET.", "--output", "-o", "--output-file"),
    ] = None,
    unordered: Annotated[
        bool, results("Write each result as its row finishes, not all in input order.", "--unordered")
    ] = False,
    error_file: Annotated[
        str | None, results("Where failed rows go too. Default: beside the output, with the ending .errors.jsonl.")
    ] = None,
    report: Annotated[
        str | None,
        results(
            "Write a report of the job, one HTML file with figures and charts, however the job ends.", metavar="PATH"
        ),
    ] = None,
    json_file: Annotated[
        str | None,
        results("Write the summary's figures as JSON, or the dry run's.", "--json", metavar="FILE"),
    ] = None,
    history: Annotated[
        str | None,
        results(
            "The SQLite file in which the prompt's runs are recorded; off: nowhere. Default: history.sqlite in the "
            "prompt's folder.",
            metavar="FILE",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        results("Write a trace of the first steps, for chrome://tracing or Perfetto.", metavar="FILE"),
    ] = None,
    profile_steps: Annotated[int, results("Steps in the trace. Default: 100.", min=1)] = 100,
    fresh: Annotated[
        bool, going_on("Start over, and replace the output file if there is one.", "--fresh", "--overwrite")
    ] = False,
    retry_errors: Annotated[
        bool, going_on("Run the rows again that failed in an earlier run of this job.", "--retry-errors")
    ] = False,
    cache: Annotated[
        str | None,
        going_on(
            "A folder where answers are kept, so that equal requests of later jobs need not run.", metavar="FOLDER"
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        running("Write nothing: check all rows, measure briefly, and tell tokens, memory and time.", "--dry-run"),
    ] = False,
    preview: Annotated[
        int | None, running("Answer so many rows first and show them; on a terminal, ask whether to go on.", min=1)
    ] = None,
    on_error: Annotated[
        OnError, running("skip gives a row that cannot be answered an error; fail ends the job there. Default: skip.")
    ] = OnError.skip,
    grace: Annotated[
        float, running("Seconds that running rows have to finish after Ctrl-C or SIGTERM. Default: 10.", min=0)
    ] = 10.0,
    ray: Annotated[
        str | None,
        machines(
            "Answer on a Ray cluster, with one engine on each GPU or machine: HOST:PORT, auto, or local.",
            metavar="ADDRESS",
        ),
    ] = None,
    *,
    sampling: SamplingFlags,
    engine: EngineFlags,
    cost: CostFlags,
    latitude: LatitudeFlags,
) -> None:
    """Answer a file of prompts.

    A row is a JSON object with "messages" (a conversation) or "prompt" (text), or with the fields that --prompt-
    template or a --prompt names; in a text file it is a line; in CSV and Parquet files columns are fields. Folders and
    globs stand for their files, which may be compressed (.gz, .zst). Batch files of OpenAI and Anthropic are known by
    their first row, and get results in their own format. Text becomes a user's message where the model has a chat
    template; with --raw the model completes it as it is. Sampling parameters in a row go before those of the command.

    A result is the row's own fields and: "row", its number from 0; "response"; "finish_reason"; "usage" with
    "prompt_tokens" and "completion_tokens"; with --logprobs and --prompt-logprobs, these. With -n, "response" and
    "finish_reason" are lists. A row that cannot be answered has "error" instead, and the others go on. A field of the
    row that has one of these names is kept as "input_response" and so on.

    Results appear in the order of the input when the job is done. Until then finished rows are in a journal beside the
    output: whatever ends the job, the same command goes on where it was. Ctrl-C and SIGTERM let the running rows
    finish, and leave what is done in the output; a second one ends at once.

    Exit code: 0, all rows are answered; 1, some have errors; 2, wrong usage: arguments, files, a limit on their size,
    or a model that cannot be used; 3, the job could not go on: the disk, memory or a step of the model; 130 after
    Ctrl-C, 143 after SIGTERM; 141, nobody reads the results any more.
    """
    if (prompts is None) == (input_file is None):
        raise UsageError("expected PROMPTS or --input-file" + (", not both" if prompts else ""))
    if output is None and not dry_run:
        raise UsageError("Missing option '--output' / '-o'.")
    if dry_run and preview:
        raise UsageError("--preview: a dry run answers no rows")
    if dry_run and ray:
        raise UsageError("--ray: a dry run measures this machine alone")
    if profile is not None and (dry_run or ray):
        raise UsageError("--profile: traces the steps of this process; expected no --dry-run and no --ray")
    if raw and system is not None:
        raise UsageError("--system: a system message needs the chat template that --raw does without")

    from pybatch.jobs.checked_rows import RowOptions, check_input
    from pybatch.jobs.files import created, expect_all_apart, is_stream, open_stream, standard_streams_reserved
    from pybatch.jobs.report.files import ReportFiles
    from pybatch.jobs.results.destination import Destination
    from pybatch.jobs.sources import open_source
    from pybatch.prompts.chain import step_jobs

    name = prompts or input_file or ""
    folder = None if cache is None else Path(cache)
    modules = engine.given().get("lora_modules")
    options = RowOptions(format and format.value, prompt_template, system, raw, lora_modules=modules)
    if prompt is not None:
        options, engine, sampling = with_prompt(prompt, options, engine, sampling, context)
    with usage_errors():
        told = ReportFiles(report, json_file, cost.prices(), profile)
    traced = latitude.traced(engine.model, told.prices, getattr(options, "prompt", None))
    interruption = Interruption()
    with ending_at_once(interruption), ExitStack() as opened:
        traced = opened.enter_context(recording(options, engine.model, name, told.prices, history, traced))
        with usage_errors():
            name = resolved(name, latitude.latitude)
            output = None if output is None else resolved(output, latitude.latitude)
            kept = None if dry_run and output is not None and is_stream(output) else output
            to = Destination(kept, error_file, unordered=unordered, fresh=fresh, retry_errors=retry_errors)
            expect_all_apart(to.files, rows=name, others=(engine.model, engine.given().get("tokenizer")))
            source = open_source(name, input_format and input_format.value)
            expect_reports_apart(told, name, to)
            stream = None if kept is None or dry_run else open_stream(kept)
            first_rows = Preview(preview)
            opened.enter_context(standard_streams_reserved())
            checked = check_input(
                source,
                options,
                sampling=sampling.given(),
                created=created(name),
            )
            steps = step_jobs(checked, to, opened, sampling.given())
            for step in steps[:-1]:
                expect_all_apart(step.destination.files, rows=name)
        if prompt is not None:
            expect_some_good(checked)
        if dry_run and len(steps) > 1:
            raise UsageError("--dry-run: what a chain's later steps take depends on the answers of the first")
        answering: tuple[Session | ClusterSession, SamplingParams] | None = None
        for step, job in opened.enter_context(closing(open_jobs(steps, engine, sampling, stream, told))):
            interruption.jobs.append(job)
            if step is steps[0]:
                for line in job.checked.lines():
                    tell(line)
                if job.source.rereadable and not job.checked.rows:
                    tell(f"{job.source.name} has no rows: there is nothing to answer.")
            if dry_run:
                show_dry_run(job, folder, sampling, engine, told, before_it_prints=opened.close)
            if job.checked.bad and on_error is OnError.fail:
                raise CommandError("--on-error fail: nothing has run", exit_codes.FAILED_ROWS)
            if answering is None and ray:
                answering = opened.enter_context(cluster(ray, engine, sampling))
            elif answering is None:
                answering = opened.enter_context(local(engine, sampling, profile, profile_steps))
            if step.name is not None:
                tell(f"Step {steps.index(step) + 1} of {len(steps)}: {step.name}")
            shown = first_rows if step is steps[0] else Preview(None)
            reports = told if step.last else ReportFiles(None, None, told.prices)
            answer(*answering, job, on_error.value, shown, grace, folder, reports, engine.model, traced, last=step.last)


def expect_reports_apart(told: ReportFiles, rows: str, to: Destination) -> None:
    """Raises OSError if what is told of the job cannot be put there, as far as that is known before it has run."""
    from pybatch.jobs.disk.publishing import expect_place

    others = {
        os.path.realpath(each): what
        for each, what in ((rows, "prompts"), (to.output, "results"), (to.errors, "errors"), (to.journal, "journal"))
        if each is not None
    }
    for flag, path in told.paths.items():
        if what := others.setdefault(os.path.realpath(path), ""):
            raise FileExistsError(f"{flag}: {path} is the file of the {what}; {flag} needs one of its own")
        others[os.path.realpath(path)] = flag.removeprefix("--")
        expect_place(path)
