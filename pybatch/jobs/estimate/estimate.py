"""What a job will take, told before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from pybatch.api.llm import LLM
from pybatch.api.session import Session
from pybatch.engine import Engine, RequestOutput, SamplingParams
from pybatch.jobs.answers.job_answers import JobAnswers
from pybatch.jobs.check import Checked
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.estimate.survey import ErrorKind, SampledRow, Survey
from pybatch.jobs.order.admission import AdmissionOrder, most_output
from pybatch.jobs.rows import Row
from pybatch.machine.memory import peak_memory
from pybatch.tune.cost import Prices, Usage
from pybatch.tune.output_lengths import OutputLengths
from pybatch.tune.simulator import SimulatedRun, Simulator, Work
from pybatch.tune.step_times import StepShape, StepTimes

SAMPLE_SECONDS = 10.0
PREFILL_SHARE = 0.3  # of the seconds, for the prompts of the rows that are answered
MOST_SIMULATED = 1 << 19  # output tokens
GOLDEN = 0.6180339887498949


@dataclass(frozen=True, slots=True)
class Trial:
    """Some rows of the job, answered. ended: by themselves; the others were cut off by their limit or the time.
    decode_seconds: of the steps that only decoded. predicted: what StepTimes made of the same rows."""

    rows: int
    output_tokens: int
    ended: int
    seconds: float
    decode_seconds: float
    predicted_seconds: float
    predicted_decode_seconds: float

    def corrected(self, times: StepTimes) -> StepTimes:
        """So that they fit what was measured. Prompts and decoding have factors of their own, since the rows that are
        tried have another share of prompts than all of them have."""
        predicted = self.predicted_seconds - self.predicted_decode_seconds
        overall = ratio(self.seconds, self.predicted_seconds, otherwise=1.0)
        return times.corrected(
            decodes=ratio(self.decode_seconds, self.predicted_decode_seconds, otherwise=overall),
            prompts=ratio(self.seconds - self.decode_seconds, predicted, otherwise=overall),
        )


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """In bytes. kv_cache_peak: of the pool what is in use at most. kv_cache_touched: what has been, which still holds
    prefixes. peak: of the process, or of the GPU's memory."""

    weights: int
    kv_cache: int
    kv_cache_peak: int
    kv_cache_touched: int
    peak: int


@dataclass(frozen=True, slots=True)
class Estimate:
    """Counts of rows and prompt tokens are exact; output tokens and times are estimates. All beams of a search count.

    rows: that are left to do; rows_done: by an earlier run. rows_in_cache: of those left that have answers from earlier
    jobs; prompt_tokens_in_cache: of these. repeated_rows: that need not be run, since their answers are those of equal
    rows; repeated_prompt_tokens: of these. shared_prompt_tokens: of the other rows, that need not be computed in the
    best order. cached_prompt_tokens: that the prefix cache is expected to find. prompts: the first ones, as the model
    sees them.
    """

    rows: int
    rows_done: int
    errors: dict[str, ErrorKind]
    prompt_tokens: int
    longest_prompt: int
    rows_in_cache: int
    prompt_tokens_in_cache: int
    repeated_rows: int
    repeated_prompt_tokens: int
    shared_prompt_tokens: int
    cached_prompt_tokens: int
    output_tokens: int
    output_tokens_at_most: int
    seconds: float
    sequences_in_a_step: float
    preemptions: int
    memory: MemoryPlan
    trial: Trial
    prompts: list[str]

    @property
    def rows_failed(self) -> int:
        return sum(kind.rows for kind in self.errors.values())

    @property
    def usage(self) -> Usage:
        return Usage(self.seconds, self.rows, self.prompt_tokens, self.output_tokens)

    def to_json(self, prices: Prices) -> dict[str, Any]:
        return {**asdict(self), "rows_failed": self.rows_failed, "cost": prices.to_json(self.usage)}


def estimate(
    llm: LLM,
    rows: Iterable[Row],
    dialect: Dialect,
    params: SamplingParams,
    times: StepTimes,
    *,
    checked: Checked | None = None,
    done: Callable[[Row], bool] = lambda row: False,
    answers: JobAnswers | None = None,
    trial_seconds: float = SAMPLE_SECONDS,
) -> Estimate:
    """Reads all rows once, answers a few of them for about trial_seconds, and runs the others on a simulated engine.

    times: of this engine (tune.calibration); they are scaled so that they fit the rows that were answered. checked:
    what is known of the rows. done: whether an earlier run has done a row. answers: that earlier jobs have left. Raises
    OSError if rows cannot be read, and whatever a step of the engine raises.
    """
    session, engine = llm.session, llm.engine
    begin = time.perf_counter()
    survey = Survey(session, dialect, params, checked or Checked(), answers)
    rows_done = 0

    def rows_left() -> Iterator[Row]:
        nonlocal rows_done
        for row in rows:
            if done(row):
                rows_done += 1
            else:
                yield row

    survey.read(rows_left())
    reading = time.perf_counter() - begin

    chosen = rows_to_try(survey.sample, times, trial_seconds, most=engine.config.max_num_seqs)
    trial, lengths = answer_some(session, chosen, times, trial_seconds)
    times = trial.corrected(times)
    block = engine.kv_block_bytes
    resident = psutil.Process().memory_info().rss - engine.kv_blocks_touched * block  # with what steps need besides
    output_tokens = round(sum(lengths.expected(limit) * count for limit, count in survey.limits.items()))

    simulated = spread(survey.sample, most_to_simulate(survey.sample, lengths))
    run = simulator(session, times).run(in_order(simulated, lengths, engine.config.block_size))
    tokens = survey.prompt_tokens - survey.repeated_tokens - survey.tokens_in_cache + output_tokens
    share = tokens / max(1, run.prompt_tokens + run.output_tokens)

    memory = memory_plan(engine, run, share, resident)
    return Estimate(
        rows=survey.rows,
        rows_done=rows_done,
        errors=survey.errors,
        prompt_tokens=survey.prompt_tokens,
        longest_prompt=survey.longest_prompt,
        rows_in_cache=survey.in_cache,
        prompt_tokens_in_cache=survey.tokens_in_cache,
        repeated_rows=survey.repeated,
        repeated_prompt_tokens=survey.repeated_tokens,
        shared_prompt_tokens=survey.shared_tokens,
        cached_prompt_tokens=min(round(share * run.cached_tokens), survey.shared_tokens),
        output_tokens=output_tokens,
        output_tokens_at_most=survey.most_output_tokens,
        seconds=reading + share * run.seconds,
        sequences_in_a_step=run.sequences / max(1, run.steps),
        preemptions=round(share * run.preemptions),
        memory=memory,
        trial=trial,
        prompts=survey.prompts,
    )


def memory_plan(engine: Engine, run: SimulatedRun, share: float, resident: int) -> MemoryPlan:
    """share: of the job's work to the simulated one. resident: memory of the process without the pool's.

    On a CPU the pool's memory is taken block by block, and never given back: what ends stays as a cached prefix as long
    as there are blocks that have not been used."""
    weights, pool = engine.weight_bytes, engine.kv_cache_bytes
    block = engine.kv_block_bytes
    later = (run.touched_kv_blocks - run.peak_kv_blocks) * share
    touched = min(engine.num_kv_blocks, round(run.peak_kv_blocks + later)) * block
    on_gpu = engine.decoder.device.type == "cuda"
    peak = weights + pool if on_gpu else max(peak_memory(), resident + touched + engine.state_bytes)
    return MemoryPlan(weights, pool, run.peak_kv_blocks * block, touched, peak)


def simulator(session: Session, times: StepTimes) -> Simulator:
    engine = session.engine
    return Simulator(
        engine.config,
        times.seconds,
        max_model_len=engine.max_model_len,
        num_kv_blocks=engine.num_kv_blocks,
        num_host_blocks=engine.num_host_blocks,
        num_states=engine.num_states,
        swap_seconds=engine.swap_seconds,
    )


# ---- a few rows are answered ----


def rows_to_try(sample: Sequence[SampledRow], times: StepTimes, seconds: float, *, most: int) -> list[SampledRow]:
    """Evenly spaced ones, as many as run at once and have their prompts computed in a part of the time."""
    token_seconds = times.seconds(StepShape(256, 0, 0, 0)) / 256
    count = min(most, len(sample))
    while count > 1:
        chosen = spread(sample, count)
        samples = sum(row.params.num_sequences for row in chosen)
        prefill = token_seconds * sum(len(row.token_ids) for row in chosen)
        if samples <= most and prefill <= seconds * PREFILL_SHARE:
            return chosen
        count = count * 3 // 4
    return spread(sample, count)


def answer_some(
    session: Session, rows: Sequence[SampledRow], times: StepTimes, seconds: float
) -> tuple[Trial, OutputLengths]:
    """Answers rows as the job would, until the time is over."""
    session.reset_prefix_cache()
    metrics = session.engine.metrics
    running: dict[str, SampledRow] = {}
    outputs: list[RequestOutput] = []
    tokens, begin, decoding = metrics.output_tokens, time.perf_counter(), 0.0
    for row, prompt in zip(rows, session.encode([(row.token_ids, row.params) for row in rows]), strict=True):
        running[session.add(prompt, row.params, outputs.append, index=row.index, standing=row.standing)] = row
    try:
        while not session.idle and time.perf_counter() - begin < seconds:
            before = time.perf_counter(), metrics.step_tokens - metrics.step_sequences
            session.step()
            if metrics.step_tokens - metrics.step_sequences == before[1]:  # one token each
                decoding += time.perf_counter() - before[0]
    finally:
        for request_id in running:
            session.abort(request_id)
    took, tokens = time.perf_counter() - begin, metrics.output_tokens - tokens

    works: list[Work] = []
    observed: list[tuple[int, bool]] = []
    for output in outputs:
        row = running.pop(output.request_id)
        ended = [(len(each.token_ids), each.finish_reason == "stop") for each in output.outputs if each.token_ids]
        observed += ended
        lengths = [length for length, _ in ended]
        if row.params.use_beam_search:  # its beams go on together
            lengths = [max(lengths, default=0)] * row.params.num_sequences
        works += [work_of(row, lengths)] if ended else []
    cut_off = sum(row.params.num_sequences for row in running.values())
    if cut_off:  # they began at about the same time
        length = max(1, (tokens - sum(sum(work.output_tokens) for work in works)) // cut_off)
        observed += [(length, False)] * cut_off
        works += [work_of(row, [length] * row.params.num_sequences) for row in running.values()]
    predicted = simulator(session, times).run(works)
    ended_rows = sum(ended for _, ended in observed)
    trial = Trial(len(rows), tokens, ended_rows, took, decoding, predicted.seconds, predicted.decode_seconds)
    return trial, OutputLengths(observed)


def work_of(row: SampledRow, output_tokens: Sequence[int]) -> Work:
    return Work(row.token_ids, output_tokens, row.params.max_tokens, row.params.kv_policy, row.standing)


def ratio(measured: float, predicted: float, *, otherwise: float) -> float:
    """otherwise: where there was nothing of the kind."""
    return measured / predicted if measured > 0 and predicted > 0 else otherwise


# ---- all of them are simulated ----


def spread(sample: Sequence[SampledRow], count: int) -> list[SampledRow]:
    """So many rows, evenly spaced."""
    return [sample[i * len(sample) // count] for i in range(count)]


def most_to_simulate(sample: Sequence[SampledRow], lengths: OutputLengths) -> int:
    """Rows, so that the simulation takes some seconds."""
    tokens = sum(row.params.num_sequences * lengths.expected(row.limit) for row in sample)
    return len(sample) if tokens <= MOST_SIMULATED else max(1, int(len(sample) * MOST_SIMULATED / tokens))


def in_order(rows: Iterable[SampledRow], lengths: OutputLengths, block_size: int) -> Iterator[Work]:
    """The rows in the order in which the job admits them, with outputs of the lengths that are expected."""
    order = AdmissionOrder[Work](block_size=block_size)
    number = 0
    for row in rows:
        while not order.has_room:
            yield order.pop()[0]
        count = row.params.num_sequences
        lots = 1 if row.params.use_beam_search else count  # beams go on together
        shares = [(number + i + 0.5) * GOLDEN % 1 for i in range(lots)]  # spread evenly over [0, 1)
        number += lots
        outputs = [lengths.quantile(share, row.limit) for share in shares] * (count // lots)
        work = work_of(row, outputs)
        order.push(work, row.token_ids, most_output(row.params))
    while len(order):
        yield order.pop()[0]
