"""A bulk job: rows through the model, results into a file as they finish."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pybatch.api.inputs import Prompt
from pybatch.api.llm import LLM
from pybatch.api.progress import BatchProgress
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.jobs.prompts import PromptMaker
from pybatch.jobs.read_ahead import ReadAhead
from pybatch.jobs.reader import Row
from pybatch.jobs.result_file import ResultFile
from pybatch.jobs.writer import answer, result_line

WAIT = 0.05  # seconds between two checks of `stopped` while no row comes


def run_job(
    llm: LLM,
    rows: ReadAhead,
    make_prompt: PromptMaker,
    params: SamplingParams,
    results: ResultFile,
    progress: BatchProgress,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Answers every row and writes the results in the order in which they finish; a row that cannot be answered is
    written with an "error".

    stopped: checked between two steps; the job ends once it returns True.

    Raises OSError, with the file's name, if rows cannot be read or results cannot be written, and whatever the engine's
    step raises. However the job ends, every row that has finished is in the results.
    """
    session = llm.session
    room = 2 * llm.engine.config.max_num_seqs  # so that the batching policy has some to choose from
    inbox: deque[RequestOutput] = deque()
    running: dict[str, Row] = {}

    def save(row: Row, result: Mapping[str, Any], prompt_tokens: int = 0) -> None:
        if "error" in result:
            result = {"error": f"line {row.line}: {result['error']}"}
        try:
            line = result_line(row, result)
        except (ValueError, RecursionError) as error:  # nested too deeply for the encoder
            result = {"error": f"line {row.line}: the row cannot be written: {error}"}
            line = result_line(Row(row.index, row.line, row.size, {}), result)
        results.append(line)
        progress.finish(row.size, prompt_tokens, failed="error" in result)

    def draw() -> Iterator[tuple[Row, Prompt]]:
        """The rows that there are and that there is room for."""
        drawn = len(running)
        while drawn < room and not stopped():
            row = rows.take(0 if drawn else WAIT)
            if row is None:
                if drawn or rows.ended:
                    return
                continue
            try:
                prompt = make_prompt(row)
            except ValueError as error:
                save(row, {"error": str(error)})
            else:
                drawn += 1
                yield row, prompt

    def save_finished() -> None:
        while inbox:
            output = inbox.popleft()
            save(running.pop(output.request_id), answer(output), len(output.prompt_token_ids))

    try:
        while not stopped() and (running or not rows.ended):
            drawn = list(draw())
            encoded = session.encode([(prompt, params) for _, prompt in drawn])
            for (row, _), ids in zip(drawn, encoded, strict=True):
                running[session.add(ids, params, inbox.append, index=row.index)] = row
            if running and not inbox:
                try:
                    session.step()
                except BaseException:
                    for output in inbox:
                        if output.error is None:  # of those that the step has dropped
                            save(running[output.request_id], answer(output), len(output.prompt_token_ids))
                    raise
            save_finished()
    finally:
        for request_id in running:
            session.abort(request_id)
