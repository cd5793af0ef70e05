"""A project of Latitude, through its SDK."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pybatch.latitude.access import Access
from pybatch.latitude.errors import TOO_LARGE, LatitudeError, latitude_errors

if TYPE_CHECKING:
    from latitude_sdk import LatitudeClient

PAGE = 200  # rows, at most
MOST_BYTES = 1 << 20  # of the rows in a request, about
TRIES = 5  # more, a second apart and then twice as long each time, or as Retry-After says
DOLLAR = 10**8  # in Latitude's microcents


class Project:
    """Its data sets, scores and experiments. Requests are tried again after 429 and 5xx; what is refused all the same
    raises LatitudeError. May be used by several threads.

    access: or a project's slug, with the key and the addresses from the environment; None takes the project from there
    too. Raises ValueError for what is missing.
    """

    def __init__(self, access: Access | str | None = None) -> None:
        self.access = access if isinstance(access, Access) else Access.from_environment(access)
        self.slug = self.access.project
        try:
            import latitude_sdk  # noqa: F401
        except ModuleNotFoundError as error:
            raise ValueError(f"latitude needs the package {error.name}: pip install 'pybatch[latitude]'") from None

    @cached_property
    def _client(self) -> LatitudeClient:
        from latitude_sdk import LatitudeClient

        return LatitudeClient(api_key=self.access.api_key, base_url=self.access.api_url, max_retries=TRIES)

    def expect(self) -> None:
        """Raises LatitudeError unless there is such a project, and the key is one of it."""
        with latitude_errors(self.access, f"Latitude's project {self.slug}"):
            self._client.datasets.list(self.slug, limit=1)

    def expect_dataset(self, dataset: str) -> None:
        """Makes the data set, empty, if it is not there."""
        try:
            with latitude_errors(self.access, self._name(dataset)):
                self._client.datasets.get(self.slug, dataset)
        except LatitudeError as error:
            if error.status != 404:
                raise
            with latitude_errors(self.access, self._name(dataset)):
                made = self._client.datasets.create(self.slug, name=dataset)
            if made.slug != dataset:
                raise LatitudeError(
                    f"{self._name(dataset)}: Latitude has made {made.slug} of that name: use this one"
                ) from None

    def rows(self, dataset: str) -> Iterator[dict[str, Any]]:
        """All rows, the oldest first, page by page: {id, input, output, expectedOutput, metadata, custom}."""
        cursor: str | None = None
        while True:
            with latitude_errors(self.access, self._name(dataset)):
                page = self._client.datasets.list_rows(
                    self.slug, dataset, cursor=cursor, limit=PAGE, sort_direction="asc"
                )
            for row in page.items:
                cells = (row.input, row.output, row.expected_output, row.metadata)
                names = ("input", "output", "expectedOutput", "metadata")
                yield {
                    "id": row.row_id,
                    **{name: as_sent(cell) for name, cell in zip(names, cells, strict=True)},
                    "custom": {name: as_sent(cell) for name, cell in row.custom.items()},
                }
            cursor = page.next_cursor
            if cursor is None or not page.has_more:
                return

    def insert(self, dataset: str, rows: Iterable[Mapping[str, Any]]) -> int:
        """Puts rows, as of `rows`, into a data set; one whose id is there takes that one's place. Returns how many."""
        batch: list[Mapping[str, Any]] = []
        count = size = 0
        for row in rows:
            length = len(json.dumps(row))
            if batch and (len(batch) == PAGE or size + length > MOST_BYTES):
                self._insert(dataset, batch)
                batch, size = [], 0
            batch.append(row)
            count, size = count + 1, size + length
        if batch:
            self._insert(dataset, batch)
        return count

    def _insert(self, dataset: str, rows: Sequence[Mapping[str, Any]]) -> None:
        from latitude_sdk.datasets import InsertDatasetRowsBodyRowsItem

        what = self._name(dataset) + (f", row {rows[0].get('id')}" if len(rows) == 1 else "")
        try:
            with latitude_errors(self.access, what):
                items = [InsertDatasetRowsBodyRowsItem.model_validate(row) for row in rows]
                self._client.datasets.insert_rows(self.slug, dataset, rows=items)
        except LatitudeError as error:
            if error.status != TOO_LARGE or len(rows) == 1:
                raise
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                self._insert(dataset, half)

    def score(
        self,
        trace_id: str,
        value: float,
        *,
        passed: bool,
        source: str,
        feedback: str = "",
        seconds: float = 0.0,
        tokens: int = 0,
        dollars: float = 0.0,
        metadata: Mapping[str, Any] | None = None,
    ) -> str:
        """Scores a trace, and gives the score's id. value: 0 to 1, the greater the better. source: says whose score it
        is. seconds, tokens, dollars: what scoring took."""
        from latitude_sdk import CreateCustomScoreBody, TraceRef_Id

        if not 0 <= value <= 1:
            raise ValueError(f"value: expected 0 to 1, got {value!r}")
        body = CreateCustomScoreBody(
            trace=TraceRef_Id(id=trace_id),
            source_id=source,
            value=value,
            passed=passed,
            feedback=feedback,
            duration=round(seconds * 1e9),
            tokens=tokens,
            cost=round(dollars * DOLLAR),
            metadata=None if metadata is None else dict(metadata),
        )
        with latitude_errors(self.access, f"a score of the trace {trace_id} in {self.slug}"):
            return str(self._client.scores.create(self.slug, request=body).id)

    def create_experiment(self, name: str, variants: Mapping[str, Mapping[str, str]], *, description: str = "") -> str:
        """An experiment, of which each variant is the traces that have its labels in their metadata; the first one is
        the baseline. variants: the labels by the variants' names. Returns the experiment's slug."""
        from latitude_sdk import FilterCondition
        from latitude_sdk.experiments import CreateExperimentBodyVariantsItem

        if len(variants) < 2:
            raise ValueError(f"variants: expected two or more, got {len(variants)}")
        items = [
            CreateExperimentBodyVariantsItem(
                name=variant,
                baseline=number == 0,
                filter_set={
                    f"metadata.{label}": [FilterCondition(op="eq", value=value)] for label, value in labels.items()
                },
            )
            for number, (variant, labels) in enumerate(variants.items())
        ]
        with latitude_errors(self.access, f"the experiment {name} in {self.slug}"):
            made = self._client.experiments.create(self.slug, name=name, description=description, variants=items)
        return str(made.slug)

    def _name(self, dataset: str) -> str:
        return f"latitude:{self.slug}/{dataset}"


def as_sent(cell: Any) -> Any:
    """A cell's value. The SDK makes every number a float; to Latitude itself, in JavaScript, there is no difference."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() else cell
