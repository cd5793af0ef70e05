"""Rows of a data set of Latitude."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from hashlib import blake2b

from pybatch.jobs.rows import Row
from pybatch.latitude.addresses import DatasetAddress
from pybatch.latitude.project import Project
from pybatch.latitude.rows import fields_of


class LatitudeSource:
    """A Source of a data set as it was when this was made: its rows are read page by page into a temporary file, so
    that all passes over them see the same ones. A row's place has its id.

    Raises LatitudeError if it cannot be read, ValueError for what is missing in the environment.
    """

    keeps_row_ids = True  # in results that go to a data set, too
    rereadable = True
    typed = False

    def __init__(self, address: DatasetAddress) -> None:
        self.name = str(address)
        project = Project(address.project)
        self._file = tempfile.NamedTemporaryFile(prefix="pybatch-")  # noqa: SIM115  # as long as the source is there
        self._digest = blake2b()
        for row in project.rows(address.dataset):
            line = json.dumps([row["id"], fields_of(row)]).encode() + b"\n"
            self._digest.update(line)
            self._file.write(line)
        self._file.flush()

    def rows(self) -> Iterator[Row]:
        with open(self._file.name, "rb") as file:
            for index, line in enumerate(file):
                id, fields = json.loads(line)
                yield Row(index, f"row {id}", len(line), fields)

    def digest(self) -> str:
        return self._digest.hexdigest()
