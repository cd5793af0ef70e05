"""What prompts took and were worth, run by run: recorded by pybatch run --prompt, told by pybatch prompts history."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pybatch.cli.answering import tell
from pybatch.cli.command import UsageError, stdout, usage_errors
from pybatch.cli.flags import argument, option

if TYPE_CHECKING:
    from pybatch.jobs.checked_rows import RowOptions
    from pybatch.jobs.job import Job
    from pybatch.tune.cost import Prices

    Watch = Callable[[Job], AbstractContextManager[object]]

runs = partial(option, "Runs")


@contextmanager
def recording(
    options: RowOptions, model: str, data: str, prices: Prices, history: str | None, watch: Watch
) -> Iterator[Watch]:
    """What is to be entered with each job of a command: `watch`, and of a prompt what records the run once the block
    ends, however it does. history: as `record` has it."""
    from pybatch.prompts.history.recording import JobRecorder, record
    from pybatch.prompts.rows import PromptOptions

    prompt = options.prompt if isinstance(options, PromptOptions) else None
    if prompt is None:
        if history is not None:
            raise UsageError("--history: only the runs of a --prompt are recorded")
        yield watch
        return
    recorder = JobRecorder(prompt, model, data, prices)

    @contextmanager
    def both(job: Job) -> Iterator[None]:
        with watch(job), recorder.watching(job):
            yield

    try:
        yield both
    finally:
        if (run := recorder.run()) is not None:
            record([(prompt, run)], history, tell)


def history(
    prompt: Annotated[
        str | None,
        argument("A name, also with @VERSION, or a file. Default: all prompts.", "[FILE-OR-NAME]"),
    ] = None,
    file: Annotated[
        str | None,
        runs("The SQLite file. Default: history.sqlite in the prompts' folder.", "--history", metavar="FILE"),
    ] = None,
    report: Annotated[str | None, runs("Write a page with charts, one HTML file.", metavar="PATH")] = None,
    json_file: Annotated[str | None, runs("Write the runs as JSON.", "--json", metavar="FILE")] = None,
) -> None:
    """Tell what each version of a prompt took and was worth, run by run.

    pybatch run --prompt and pybatch compare record tokens, latency, errors, cost and scores, and nothing of what
    prompts and answers say.

    Exit code: as pybatch run's.
    """
    with usage_errors():
        from pybatch.prompts import load
        from pybatch.prompts.history.report import write_history
        from pybatch.prompts.history.store import FILE, History, file_for
        from pybatch.prompts.history.tables import history_table
        from pybatch.prompts.loading import FOLDER

        path = Path(file) if file is not None else Path(FOLDER) / FILE
        if prompt is not None and os.path.isfile(prompt):
            loaded = load(prompt)
            prompt, path = loaded.name, path if file is not None else file_for(loaded) or path
        found = History(path).runs(prompt)
        if prompt is not None and not found:
            raise ValueError(f"{path}: no run of {prompt!r} is there")
        if json_file is not None:
            from pybatch.jobs.report.report import write_json

            write_json(json_file, {"runs": [run.to_json() for run in found]})
        if report is not None:
            write_history(report, found)
    stdout().print(history_table(found))
