"""One pass over a job's rows without running them: what is wrong with them, how many tokens they are, and a sample."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from pybatch.api.inputs import Encoded
from pybatch.api.outcomes import Failure
from pybatch.api.request_plan import RequestPlan
from pybatch.api.session import Session
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.pooling_params import Params, PoolingParams
from pybatch.engine.standing import ORDINARY, Standing
from pybatch.jobs.answers.cache_keys import CacheKeys
from pybatch.jobs.answers.duplicates import KeySet
from pybatch.jobs.answers.job_answers import JobAnswers, may_repeat, number_of
from pybatch.jobs.check import Checked
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.order.prefix_savings import PrefixSavings
from pybatch.jobs.row_runner import RowSession, planned_row
from pybatch.jobs.rows import Row, request_number

BATCH = 256  # rows that are tokenised at once
FIRST = 3  # errors of a kind, and prompts, that are shown
STRETCH = 64  # neighbouring rows, which may share a prefix, come into the sample together
MOST_ROWS, MOST_TOKENS = 2048, 1 << 20  # of the sample


@dataclass(slots=True)
class ErrorKind:
    """The number of rows with an error of one code, and the first messages."""

    rows: int = 0
    first: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SampledRow:
    """limit: the most tokens that one of its samples, or beams, may generate."""

    index: int
    token_ids: array[int]
    params: Params
    limit: int
    standing: Standing = ORDINARY


class Survey:
    """Counts rows, errors and tokens, in memory that grows by some 20 bytes a row: for telling which rows repeat others
    and so are answered without being run."""

    def __init__(
        self,
        session: Session,
        dialect: Dialect,
        params: SamplingParams,
        checked: Checked,
        answers: JobAnswers | None = None,
    ) -> None:
        """params: for the rows' own to change. checked: what is known of the rows. answers: that earlier jobs have
        left."""
        self._session, self._dialect, self._params, self._checked = session, dialect, params, checked
        self._answers = answers
        self.rows = 0
        self.errors: dict[str, ErrorKind] = {}
        self.prompt_tokens = self.longest_prompt = 0
        self.repeated = self.repeated_tokens = 0  # prompts that need not be run, and their tokens
        self.in_cache = self.tokens_in_cache = 0  # and those that have answers from earlier jobs
        self.limits: Counter[int] = Counter()  # SampledRow's, of every sample or beam of every row that is run
        self.prompts: list[str] = []  # the first ones, as the model sees them
        self.sample: list[SampledRow] = []  # evenly spaced
        config = session.engine.config
        self._savings = PrefixSavings()
        self._keys = CacheKeys("", max_model_len=session.engine.max_model_len, engine_seed=config.seed)
        self._known = KeySet()
        self._stretch, self._stride = STRETCH, 1
        self._tokens = 0  # in the sample

    def read(self, rows: Iterable[Row]) -> None:
        """Raises OSError if rows cannot be read."""
        rest = iter(rows)
        while batch := list(islice(rest, BATCH)):
            self.rows += len(batch)
            self._take(batch)

    @property
    def failed(self) -> int:
        """The number of rows that will fail."""
        return sum(kind.rows for kind in self.errors.values())

    @property
    def shared_tokens(self) -> int:
        """Prompt tokens that need not be computed, in the best order; none where there is no prefix cache."""
        return self._savings.tokens if self._session.engine.config.enable_prefix_caching else 0

    @property
    def most_output_tokens(self) -> int:
        return sum(limit * count for limit, count in self.limits.items())

    def _take(self, batch: Sequence[Row]) -> None:
        ready: list[tuple[Row, RequestPlan, Standing]] = []
        for row in batch:
            request = planned_row(self._checked.request(row, self._dialect, self._params), self._session)
            if isinstance(request, Failure):
                self._fail(row, request)
            else:
                ready.append((row, *request))
        encoded = iter(self._session.encode([(prompt, plan.params) for _, plan, _ in ready for prompt in plan.prompts]))
        for row, plan, standing in ready:
            requests = list(islice(encoded, len(plan.prompts)))
            if failure := plan.failure([self._refused(prompt, plan.params) for prompt in requests]):
                self._fail(row, failure)
                continue
            for number, prompt in enumerate(requests):
                self._count(request_number(row.index, number), prompt, plan.params, standing)

    def _refused(self, prompt: Encoded, params: Params) -> Failure | None:
        """By the engine, for what is too long, or has parameters that this model cannot run."""
        refused: list[RequestOutput] = []
        self._session.abort(self._session.add(prompt, params, refused.append))
        return Failure(refused[0].error or "", refused[0].error_code or "invalid_request") if refused else None

    def _fail(self, row: Row, failure: Failure) -> None:
        kind = self.errors.setdefault(failure.code, ErrorKind())
        kind.rows += 1
        if len(kind.first) < FIRST:
            kind.first.append(f"{row.place}: {failure.message}")

    def _count(self, number: int, prompt: Encoded, params: Params, standing: Standing) -> None:
        engine = self._session.engine
        ids = array("q", kept_tokens(prompt.token_ids, params, engine.max_model_len))
        self.prompt_tokens += len(ids)
        self.longest_prompt = max(self.longest_prompt, len(ids))
        if len(self.prompts) < FIRST:
            self.prompts.append(prompt_text(self._session, prompt.token_ids, params))
        if self._has_answer(ids, params, number):
            self.in_cache += 1
            self.tokens_in_cache += len(ids)
            return
        if may_repeat(params) and not self._known.add(number_of(self._keys.key(ids, params, number))):
            self.repeated += 1
            self.repeated_tokens += len(ids)
            return
        room = engine.max_model_len - len(ids)
        limit = room if params.max_tokens is None else min(params.max_tokens, room)
        self.limits[limit] += params.num_sequences
        self._savings.add(ids)
        if self._is_sampled(number):
            self.sample.append(SampledRow(number, ids, params, limit, standing))
            self._tokens += len(ids)
            while len(self.sample) > 1 and (self._tokens > MOST_TOKENS or len(self.sample) > MOST_ROWS):
                self._thin_out()

    def _has_answer(self, ids: array[int], params: Params, number: int) -> bool:
        if self._answers is None:
            return False
        key = self._answers.key(ids, params, number)
        return key is not None and self._answers.get(key) is not None

    def _is_sampled(self, index: int) -> bool:
        return index // self._stretch % self._stride == 0

    def _thin_out(self) -> None:
        before = len(self.sample)
        self._stride *= 2
        self.sample = [row for row in self.sample if self._is_sampled(row.index)]
        if len(self.sample) == before:  # all are of one stretch
            self._stretch = max(1, self._stretch // 2)
            self.sample = self.sample[: (before + 1) // 2]
        self._tokens = sum(len(row.token_ids) for row in self.sample)


def kept_tokens(token_ids: list[int], params: Params, max_model_len: int) -> list[int]:
    """What truncate_prompt_tokens leaves of a prompt."""
    keep = params.truncate_prompt_tokens
    if keep is None:
        return token_ids
    if isinstance(params, PoolingParams):
        return token_ids[: max_model_len if keep == -1 else keep]  # all but the end-of-sequence token is the same
    return token_ids[-int(max_model_len - 1 if keep == -1 else keep) :]


def prompt_text(session: RowSession, token_ids: list[int], params: Params) -> str:
    """A prompt as the model sees it, with its special tokens."""
    ids, tokenizer = kept_tokens(token_ids, params, session.max_model_len), session.tokenizer
    return str(ids) if tokenizer is None else tokenizer.decode(ids, skip_special_tokens=False)
