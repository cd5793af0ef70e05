"""Data sets of Latitude where a job has paths: latitude:DATASET or latitude:PROJECT/DATASET."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pybatch.latitude.access import PROJECT, expect_slug, project_slug

SCHEME = "latitude:"


def is_dataset(path: str) -> bool:
    return path.startswith(SCHEME)


@dataclass(frozen=True)
class DatasetAddress:
    """Slugs of both."""

    project: str
    dataset: str

    @classmethod
    def parse(cls, text: str, project: str | None = None, environ: Mapping[str, str] = os.environ) -> Self:
        """project: where the text names none; without it LATITUDE_PROJECT_SLUG does. Raises ValueError."""
        named, slash, dataset = text.removeprefix(SCHEME).rpartition("/")
        of = expect_slug("latitude", "a project", named) if slash else project_slug(project or environ.get(PROJECT))
        return cls(of, expect_slug("latitude", "a data set", dataset))

    @property
    def local_name(self) -> str:
        """Of what a job that writes there keeps here, in the current folder."""
        return f"latitude-{self.project}-{self.dataset}"

    def __str__(self) -> str:
        return f"{SCHEME}{self.project}/{self.dataset}"


def resolved(path: str, project: str | None) -> str:
    """A path as it is, and an address with its project. project: as DatasetAddress.parse's."""
    return str(DatasetAddress.parse(path, project)) if is_dataset(path) else path
