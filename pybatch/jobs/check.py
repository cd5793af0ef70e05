"""Checks every row of a job before the model is loaded."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from pybatch.api.outcomes import Failure
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.sampling import merged
from pybatch.engine.pooling_params import Params
from pybatch.engine.sampling_params import SamplingParams
from pybatch.jobs.dialect import Dialect, RowRequest, request_of
from pybatch.jobs.rows import Row, Source

SHOWN = 20  # messages that are kept
LENGTH = 300  # of a message, in characters

Bound = Callable[[RowRequest, Params], object]
"""Raises RequestError for a row that asks for more than it may, with these parameters."""


@dataclass
class Checked:
    """What a pass over the rows has found; without one, that nothing is known of them.

    size: of the rows, in bytes. prompts: of the good rows, which may have several each. bad: how many rows will fail,
    by the code of what is wrong. messages: of the first of them, with their places. repeated: ids that several rows
    have, with the index and place of the first one. watch: called with each bad row as it is found. bound: of what rows
    may ask for; None: whatever they like.
    """

    rows: int = 0
    size: int = 0
    prompts: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    messages: list[str] = field(default_factory=list)
    repeated: dict[str, tuple[int, str]] = field(default_factory=dict)
    watch: Callable[[Row, Failure], object] | None = None
    bound: Bound | None = None

    def duplicate(self, row: Row, id: str | None) -> Failure | None:
        """The failure of a row whose id an earlier row has."""
        index, place = (row.index, "") if id is None else self.repeated.get(id, (row.index, ""))
        if row.index <= index:
            return None
        return Failure(f'custom_id "{id:.80}" was used in {place}', "duplicate_custom_id", "custom_id")

    def request(self, row: Row, dialect: Dialect, params: SamplingParams) -> tuple[RowRequest, Params] | Failure:
        """What is to be run for a row, with which parameters, or what is wrong with it."""
        asked = check_row(row, dialect, params, self.bound)
        return asked if isinstance(asked, Failure) else self.duplicate(row, asked[0].id) or asked

    def add(self, row: Row, failure: Failure) -> None:
        self.bad[failure.code] += 1
        if len(self.messages) < SHOWN:
            self.messages.append(f"{row.place}: {failure.message}"[:LENGTH])
        if self.watch is not None:
            self.watch(row, failure)

    def lines(self) -> Iterator[str]:
        """What to print of the bad rows; nothing if all are good."""
        count = self.bad.total()
        if not count:
            return
        kinds = ", ".join(f"{number:,} {code}" for code, number in self.bad.most_common())
        yield f"{count:,} of {self.rows:,} rows are bad: {kinds}"
        yield from (f"  {message}" for message in self.messages)
        if count > len(self.messages):
            yield f"  and {count - len(self.messages):,} more"


class CheckedAsRead(Checked):
    """Of a stream, whose rows are checked as they are answered: every id is kept with the place where it came first."""

    def duplicate(self, row: Row, id: str | None) -> Failure | None:
        if id is not None:
            self.repeated.setdefault(id, (row.index, row.place))
        return super().duplicate(row, id)


def check_rows(
    source: Source,
    dialect: Dialect,
    params: SamplingParams,
    watch: Callable[[Row, Failure], object] | None = None,
    bound: Bound | None = None,
) -> Checked:
    """Reads all rows and finds those that cannot be answered, whatever the model: unreadable ones, those that do not
    ask properly, sampling parameters that do not go together with `params`, and ids used before. watch, bound: as
    Checked's.

    Takes 16 bytes of memory a row that has an id. Raises OSError if the rows cannot be read, ValueError for a stream.
    """
    if not source.rereadable:
        raise ValueError(f"{source.name} can be read only once, so its rows cannot be checked before they are answered")
    checked = Checked(watch=watch, bound=bound)
    hashes, indices = array("q"), array("q")
    for row in source.rows():
        checked.rows += 1
        checked.size += row.size
        asked = check_row(row, dialect, params, bound)
        if isinstance(asked, Failure):
            checked.add(row, asked)
            continue
        checked.prompts += len(asked[0].prompts) + len(asked[0].pairs)
        if (id := asked[0].id) is not None:
            hashes.append(hash(id))
            indices.append(row.index)
    if suspects := rows_of_equal_hash(hashes, indices):
        find_repeated(checked, source, dialect, suspects)
    return checked


def check_row(
    row: Row, dialect: Dialect, params: SamplingParams, bound: Bound | None = None
) -> tuple[RowRequest, Params] | Failure:
    """What a row asks for, with the parameters that it has then, or why it cannot be answered."""
    request = request_of(dialect, row)
    if isinstance(request, Failure):
        return request
    try:
        asked = request.pooling or merged(params, request.params)
        if bound is not None:
            bound(request, asked)
    except RequestError as error:
        return Failure(str(error), error.code, error.param)
    return request, asked


def rows_of_equal_hash(hashes: array[int], indices: array[int]) -> set[int]:
    """The indices of rows of which each shares its id's hash with another one."""
    if not hashes:
        return set()
    ordered = np.sort(np.frombuffer(hashes, np.int64))
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return set()
    return set(np.frombuffer(indices, np.int64)[np.isin(np.frombuffer(hashes, np.int64), repeated)].tolist())


def find_repeated(checked: Checked, source: Source, dialect: Dialect, suspects: set[int]) -> None:
    """A second pass, which compares the ids themselves."""
    first: dict[str, tuple[int, str]] = {}
    for row in source.rows():
        if row.index not in suspects:
            continue
        asked = request_of(dialect, row)
        if isinstance(asked, Failure) or asked.id is None:
            continue
        if asked.id not in first:
            first[asked.id] = row.index, row.place
            continue
        checked.repeated[asked.id] = first[asked.id]
        failure = checked.duplicate(row, asked.id)
        assert failure is not None
        checked.add(row, failure)
