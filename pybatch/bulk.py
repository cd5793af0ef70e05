"""Bulk jobs from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from pybatch.api.inputs import expect_tokenizer
from pybatch.api.interrupts import deferred_interrupts
from pybatch.api.llm import LLM, given_to, split_arguments
from pybatch.api.progress_reporter import ProgressReporter
from pybatch.jobs.checked_rows import RowOptions, check_input
from pybatch.jobs.files import created, expect_all_apart
from pybatch.jobs.job import Job
from pybatch.jobs.preparation import OnError, Preparation, prepare
from pybatch.jobs.record import Record
from pybatch.jobs.report.files import ReportFiles
from pybatch.jobs.report.report import JobReport
from pybatch.jobs.results.destination import STANDARD, Destination
from pybatch.jobs.results.marks import Marks
from pybatch.jobs.row_runner import RowRunner, RowSession
from pybatch.jobs.rows import Source
from pybatch.jobs.sources import open_source
from pybatch.jobs.sources.read_ahead import ReadAhead
from pybatch.jobs.traced import traced
from pybatch.latitude.addresses import resolved
from pybatch.latitude.tracing import Tracing
from pybatch.prompts import Prompt, load
from pybatch.prompts.chain import step_jobs
from pybatch.prompts.rows import PromptOptions
from pybatch.tune.cost import Prices

log = logging.getLogger(__name__)


class JobError(RuntimeError):
    """A job that was to end with the first row that fails."""


def run_job(
    data: Any,
    model: str | Path | LLM,
    output: str | os.PathLike[str] | None = None,
    *,
    input_format: str | None = None,
    format: str | None = None,
    prompt: str | os.PathLike[str] | Prompt | None = None,
    prompt_template: str | None = None,
    system: str | None = None,
    raw: bool = False,
    error_file: str | os.PathLike[str] | None = None,
    on_error: OnError = "skip",
    fresh: bool = False,
    retry_errors: bool = False,
    unordered: bool = False,
    cache: str | os.PathLike[str] | None = None,
    ray: str | None = None,
    report: str | os.PathLike[str] | None = None,
    report_json: str | os.PathLike[str] | None = None,
    price_per_hour: float | None = None,
    compare_price: Sequence[str] = (),
    latitude: str | Tracing | None = None,
    use_tqdm: bool = True,
    **arguments: Any,
) -> Any:
    """Answers every row of the data, as ``pybatch run`` does, and gives the same kind of data back.

    data: a list of dicts or of prompts (texts, lists of token ids or of messages), a pandas or polars DataFrame, a
      pyarrow Table or a Hugging Face Dataset: a new one comes back, with the columns row, response, finish_reason,
      usage and error beside its own (of a list, each dict has those that it needs). Or the path of a file (JSON Lines,
      JSON, CSV, TSV, text, Parquet, also compressed), a folder or a glob, or a data set of Latitude as
      "latitude:DATASET" or "latitude:PROJECT/DATASET": the path of the output comes back.
    model: as LLM's, or an LLM that is loaded.
    output: a path for the results, whose ending says the format, or a data set of Latitude. It is needed for data in
      files, and makes any job one that goes on after a crash: beside it a journal keeps what is done, and the same call
      again runs the rest only.
    input_format: of files: jsonl, json, csv, tsv, text or parquet; None: by their names' endings.
    format: rows, openai-batch or anthropic-batch; None: what the first row is.
    prompt: that the rows fill in: a file, a name in the folder prompts, or one that pybatch.prompts has read. Its
      sampling parameters hold where none are given here; its model is not looked at. Of a chain the steps' results are
      beside the output, so that each goes on after a crash.
    prompt_template: the prompt, with {field} where a row's field goes. system: a system message in front of every
      conversation. raw: complete prompts as they are, without the model's chat template.
    error_file: where rows that failed go too; None: beside the output, with the ending .errors.jsonl.
    on_error: "skip" gives a row that cannot be answered an error; "fail" raises JobError for the first one.
    fresh: start over, and replace the output. retry_errors: run rows again that failed in an earlier run.
    unordered: write rows to the output as they finish. cache: a folder of answers that later jobs may use.
    ray: answer on the Ray cluster at this address (HOST:PORT, "auto", "local"), with an engine on each GPU or machine.
    report: write a report of the job, one HTML file, however the job ends. report_json: write its figures as JSON.
    price_per_hour: dollars an hour of the machine, or of all machines: the reports tell what the job cost.
    compare_price: what APIs ask to compare with, each NAME:IN:OUT, in dollars a million tokens.
    latitude: a project of Latitude, or a Tracing that names one and says more: a trace of each row goes there.
    use_tqdm: show a progress bar, if stderr is a terminal.
    arguments: those of LLM, unless model is one, and of SamplingParams, by name; ``seed`` is LLM's, and without
      ``max_tokens`` an answer may fill the context. Sampling parameters in a row go before these.

    Ctrl-C raises KeyboardInterrupt after the step under way; what is done stays in the journal. Raises ValueError or
    TypeError for arguments that are wrong as a whole, OSError for files, JobError as on_error says, and ClusterError
    where there is no such cluster or it has no worker any more.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error: expected one of {', '.join(get_args(OnError))}, got {on_error!r}")
    expect_type("model", model, str | os.PathLike | LLM, "a path, a name or an LLM")
    paths = {"output": output, "error_file": error_file, "cache": cache, "report": report, "report_json": report_json}
    for name, path in paths.items():
        expect_type(name, path, str | os.PathLike | None, "a path")
    expect_type("prompt", prompt, str | os.PathLike | Prompt | None, "a path, a name or a Prompt")
    for name, text in {"prompt_template": prompt_template, "system": system, "ray": ray}.items():
        expect_type(name, text, str | None, "text")
    if output == STANDARD:
        raise ValueError("output: expected a path or None, got '-': a program's standard output is its own")
    if ray is not None and isinstance(model, LLM):
        raise ValueError("model: expected a path or a name, which each of Ray's workers loads, got an LLM")
    told = ReportFiles(
        None if report is None else os.fspath(report),
        None if report_json is None else os.fspath(report_json),
        Prices.of(price_per_hour, compare_price),
    )
    expect_type("latitude", latitude, str | Tracing | None, "the slug of a project or a Tracing")
    tracing = Tracing(latitude) if isinstance(latitude, str) else latitude
    project = None if tracing is None else tracing.project
    data = resolved(data, project) if isinstance(data, str) else data
    output = resolved(output, project) if isinstance(output, str) else output
    source = open_source(data, input_format)
    in_files = isinstance(data, str | os.PathLike)
    if output is None and in_files:
        raise ValueError("output: expected a path for the results, since the data is in files")
    of_llm, of_sampling = split_arguments("run_job", arguments, isinstance(model, LLM))
    engine = given_to(model) if isinstance(model, LLM) else of_llm
    modules = engine.get("lora_modules")
    options = RowOptions(format, prompt_template, system, raw, lora_modules=modules)
    if prompt is not None:
        loaded = prompt if isinstance(prompt, Prompt) else load(prompt)
        options = PromptOptions(format, prompt_template, system, raw, lora_modules=modules, prompt=loaded)
        if tracing is not None and tracing.prompt is None:
            tracing = replace(tracing, prompt=loaded.name, prompt_version=loaded.version)
        of_sampling = {**loaded.config.sampling, **of_sampling}
    to = Destination(
        None if output is None else os.fspath(output),
        None if error_file is None else os.fspath(error_file),
        unordered=unordered,
        fresh=fresh,
        retry_errors=retry_errors,
    )
    trace = None if tracing is None else traced(tracing, engine.get("model", model), price_per_hour, log.warning)
    if in_files:
        expect_all_apart(
            to.files, rows=os.fspath(data), others=(str(engine.get("model", model)), engine.get("tokenizer"))
        )
    rows = check_input(
        source,
        options,
        sampling=of_sampling,
        created=created(os.fspath(data)) if in_files else 0,
    )
    with ExitStack() as opened:
        session: RowSession | None = None
        for step in step_jobs(rows, to, opened, of_sampling):
            prepared = opened.enter_context(
                prepare(
                    step.rows,
                    step.destination,
                    model=engine.get("model", model),
                    engine=engine,
                    sampling=of_sampling,
                    keep_records=not in_files and step.last,
                )
            )
            if on_error == "fail" and prepared.checked.bad:
                raise JobError(prepared.checked.messages[0])
            if not prepared.finished:
                session = session or opened.enter_context(session_for(model, of_llm, ray))
                kept = None if cache is None else Path(cache)
                of_step = told if step.last else ReportFiles(None, None, told.prices)
                answer(prepared, session, of_sampling, on_error, kept, of_step, use_tqdm, trace)
        return os.fspath(output) if in_files and output is not None else joined(prepared, source)


@contextmanager
def session_for(model: str | Path | LLM, arguments: Mapping[str, Any], ray: str | None) -> Iterator[RowSession]:
    """arguments: LLM's."""
    if isinstance(model, LLM):
        yield model.session
    elif ray is None:
        yield LLM(model, **arguments).session
    else:
        from pybatch.cluster.cluster_session import cluster_session

        with cluster_session(ray, {"model": model, **arguments}) as session:
            yield session


def answer(
    prepared: Preparation,
    session: RowSession,
    sampling: Mapping[str, Any],
    on_error: OnError,
    cache: Path | None,
    told: ReportFiles,
    show_progress: bool,
    trace: Callable[[Job], AbstractContextManager[object]] | None,
) -> None:
    params = replace(session.default_params, **sampling)
    progress = prepared.progress(session, params)
    tokenizer = expect_tokenizer(session.tokenizer)
    job = prepared.start(tokenizer, params, progress, arithmetic=session.arithmetic, on_error=on_error)
    with (
        JobReport(told, Path(prepared.source.name).name, session.metrics, job, session.settings) as report,
        ReadAhead(job.pending(), prepared.source.name) as pending,
        prepared.answers(session, cache) as answers,
        nullcontext() if trace is None else trace(job),
        deferred_interrupts() as interrupts,
        ProgressReporter("Answering", progress, lines=False) if show_progress else nullcontext(),
    ):
        try:
            finished = RowRunner(session, job, pending, answers, lambda: bool(interrupts)).run()
        except BaseException:
            prepared.publish_what_there_is()
            raise
        report.finished = finished
        job.results.publish(finished=finished)
    if report.fault is not None:
        raise report.fault
    if job.failure is not None:
        raise JobError(job.failure)


def joined(prepared: Preparation, source: Source) -> Any:
    """The data of the source with the job's results."""
    from json import loads

    from pybatch.jobs.results.tables import join_results

    marks = Marks(marked=prepared.dialect.extends_rows)

    def line(record: Record) -> dict[str, Any]:
        return {**loads(marks.line(record)), "row": record.index}  # which batches' results have not

    def results() -> Iterator[Any]:
        return map(line, prepared.journal)

    return join_results(source, results(), answer_columns=prepared.dialect.extends_rows)


def expect_type(name: str, value: object, types: Any, expected: str) -> None:
    if not isinstance(value, types):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
