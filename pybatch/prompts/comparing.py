"""Prompts, or models, compared, from Python."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from pybatch.api.interrupts import deferred_interrupts
from pybatch.api.llm import LLM, split_arguments
from pybatch.jobs.report.files import ReportFiles
from pybatch.jobs.sources import open_source
from pybatch.machine.folders import make_folder
from pybatch.prompts.comparison.figures import Comparison, Plan
from pybatch.prompts.comparison.jobs import ComparisonStoppedError, Engines, JobFolder, Running
from pybatch.prompts.comparison.scorers.parse import Given, scorers_of
from pybatch.prompts.comparison.task import DEFAULT_MODEL, Task, at_latitude, run, tell_of
from pybatch.prompts.comparison.variants import GivenPrompt, Model, variants_of
from pybatch.prompts.history.recording import OFF, record, runs_of
from pybatch.prompts.loading import FOLDER
from pybatch.prompts.prompt import Prompt
from pybatch.tune.cost import Prices


def compare(
    prompts: GivenPrompt | Sequence[GivenPrompt],
    data: Any,
    model: Model | Sequence[Model] | None = None,
    *,
    score: Given | Iterable[Given],
    output: str | os.PathLike[str] | None = None,
    repeats: int = 1,
    judge_model: Model | None = None,
    effect: float = 0.05,
    power: float = 0.8,
    confidence: float = 0.95,
    history: str | os.PathLike[str] | None = None,
    prompt_folder: str | os.PathLike[str] = FOLDER,
    input_format: str | None = None,
    fresh: bool = False,
    retry_errors: bool = False,
    report: str | os.PathLike[str] | None = None,
    report_json: str | os.PathLike[str] | None = None,
    price_per_hour: float | None = None,
    compare_price: Sequence[str] = (),
    latitude: str | None = None,
    use_tqdm: bool = True,
    **arguments: Any,
) -> Comparison:
    """Answers the same rows with several prompts, or models, scores the answers, and tells what separates them, as
    ``pybatch compare`` does. Needs scipy (extra ``stats``).

    prompts: files, names of prompts in `prompt_folder`, or what `load` gives; two or more, or one for several models.
    data: as run_job's: rows whose fields are the prompts' variables. input_format: of files.
    model: one for all, or one for each prompt; None: what the prompts say, else smollm2-135m.
    score: one scorer or several: "exact:TEXT", "iexact:TEXT", "contains:TEXT", "icontains:TEXT", "tokens:TEXT",
      "numeric:TEXT[:TOLERANCE]" (in TEXT {field} is a row's field), "regex:PATTERN", "schema:FILE", "judge" or
      "judge:CRITERION", "module:function"; or a function of a row and an answer.
    output: a folder for answers and scores; the same call goes on there. None: they go with the call.
    repeats: how often each row is answered, each time with another seed; a row's score is the mean.
    judge_model: None: the first variant's.
    effect: the least difference of mean scores that matters; power: with which probability it is to be found;
      confidence: of the intervals, and 1 - confidence the tests' level.
    history: a file of SQLite in which the prompts' runs are recorded; None: nowhere.
    latitude: a project of Latitude: each answer is a trace there, its scores are the trace's, and an experiment has a
      variant for each of these. None of what is asked or said goes there.
    fresh, retry_errors, report, report_json, price_per_hour, compare_price, use_tqdm: as run_job's.
    arguments: those of LLM, unless models are given as such, and of SamplingParams; they go before a prompt's own.

    Ctrl-C raises KeyboardInterrupt after the step under way. Raises ValueError (PromptError for a prompt) or TypeError
    for arguments that are wrong as a whole, and OSError for files.
    """
    several = [prompts] if isinstance(prompts, str | os.PathLike | Prompt) else list(prompts)
    models = [] if model is None else [model] if isinstance(model, Model) else list(model)
    loaded = bool(models) and all(isinstance(each, LLM) for each in models)
    engine, sampling = split_arguments("compare", arguments, loaded)
    told = ReportFiles(
        None if report is None else os.fspath(report),
        None if report_json is None else os.fspath(report_json),
        Prices.of(price_per_hour, compare_price),
    )
    task = Task(
        variants_of(several, models, DEFAULT_MODEL, sampling, prompt_folder),
        list(open_source(data, input_format).rows()),
        scorers_of(score),
        sampling,
        engine,
        repeats,
        judge_model,
        Plan(effect, power, confidence),
        told.prices,
    )
    with ExitStack() as opened:
        path = Path(opened.enter_context(tempfile.TemporaryDirectory()) if output is None else output)
        make_folder("output", path)
        interrupts = opened.enter_context(deferred_interrupts())
        at = at_latitude(task, latitude, path)
        running = Running(lambda: bool(interrupts), show_progress=use_tqdm, latitude=at)
        folder = JobFolder(path, engine, Engines(partial(LLM, **engine)), running, fresh, retry_errors)
        try:
            comparison = run(task, folder)
        except ComparisonStoppedError:
            raise KeyboardInterrupt from None
    tell_of(task, comparison, told)
    name = os.fspath(data) if isinstance(data, str | os.PathLike) else type(data).__name__
    where = OFF if history is None else os.fspath(history)
    record(runs_of(comparison, task, name), where, warnings.warn)
    return comparison
