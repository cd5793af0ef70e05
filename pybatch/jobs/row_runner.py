"""A bulk job: rows through the model, results into a file as they finish."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, BinaryIO

from pybatch.api.inputs import Prompt
from pybatch.api.interrupts import deferred_interrupts
from pybatch.api.llm import LLM
from pybatch.api.progress import BatchProgress
from pybatch.engine import SamplingParams
from pybatch.jobs.prompts import PromptMaker
from pybatch.jobs.reader import Row
from pybatch.jobs.writer import answer, result_row, write_row


def run_job(
    llm: LLM,
    rows: Iterable[Row],
    make_prompt: PromptMaker,
    params: SamplingParams,
    results: BinaryIO,
    progress: BatchProgress,
) -> None:
    """Answers every row. Rows are read as there is room for them; a bad one is written with an "error".

    results: gets the rows in the order in which they finish. progress: counts them. KeyboardInterrupt ends the job
    between two rows.
    """
    numbers = itertools.count()
    running: dict[int, Row] = {}

    def save(row: Row, result: Mapping[str, Any], prompt_tokens: int = 0) -> None:
        with deferred_interrupts():
            write_row(results, result_row(row, result))
            progress.finish(row.size, prompt_tokens, failed="error" in result)

    def prompts() -> Iterator[Prompt]:
        for row in rows:
            try:
                prompt = make_prompt(row)
            except ValueError as error:
                save(row, {"error": str(error)})
            else:
                running[next(numbers)] = row
                yield prompt

    with closing(llm.stream(prompts(), params)) as outputs:
        for output in outputs:
            save(running.pop(int(output.request_id)), answer(output), len(output.prompt_token_ids))
