"""The file of runs. Figures alone are in it: no prompts, rows or answers."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pybatch.prompts.comparison.statistics import Estimate
from pybatch.prompts.prompt import Prompt

FILE = "history.sqlite"
LAYOUT = 1  # of the tables; to be raised when they change
TABLES = """
CREATE TABLE IF NOT EXISTS runs (
  id TEXT PRIMARY KEY, time REAL, kind TEXT, prompt TEXT, version TEXT, model TEXT, data TEXT, rows INTEGER,
  errors INTEGER, input_tokens INTEGER, output_tokens INTEGER, seconds REAL, latency_p50 REAL, latency_p95 REAL,
  dollars REAL
);
CREATE TABLE IF NOT EXISTS scores (
  run TEXT, scorer TEXT, mean REAL, low REAL, high REAL, rows INTEGER, PRIMARY KEY (run, scorer)
);
"""


class HistoryError(ValueError):
    """The file is no history, or one of another version of pybatch."""


@dataclass(frozen=True)
class PromptRun:
    """id: another run of the same id takes this one's place. time: of its end, in seconds since 1970. kind: "run" or
    "compare". data: the name of the rows' file. seconds: of the machine. latency_p50, latency_p95: of a row's requests,
    from the first step to the last token, in seconds. dollars, latencies: None where they are not known. scores: by
    scorer."""

    id: str
    time: float
    kind: str
    prompt: str
    version: str
    model: str
    data: str
    rows: int
    errors: int
    input_tokens: int
    output_tokens: int
    seconds: float
    latency_p50: float | None = None
    latency_p95: float | None = None
    dollars: float | None = None
    scores: Mapping[str, Estimate] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "scores": {name: without_nan(asdict(each)) for name, each in self.scores.items()}}


COLUMNS = [each.name for each in fields(PromptRun) if each.name != "scores"]


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(each, float) and math.isnan(each) else each for name, each in values.items()}


def file_for(prompt: Prompt) -> Path | None:
    """Where a prompt's runs are kept where no other place is named: in the folder of named prompts, or beside the file.
    None for one that is no file."""
    return Path(prompt.file).parents[prompt.name.count("/")] / FILE if prompt.file else None


class History:
    """Several processes may write to it at once. Every method raises HistoryError, and OSError where the file cannot be
    read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, runs: Iterable[PromptRun]) -> None:
        """Makes the file if there is none."""
        with self._open() as database:
            for run in runs:
                values = asdict(run)
                marks = ", ".join(f":{name}" for name in COLUMNS)
                database.execute(f"INSERT OR REPLACE INTO runs ({', '.join(COLUMNS)}) VALUES ({marks})", values)
                database.execute("DELETE FROM scores WHERE run = ?", [run.id])
                database.executemany(
                    "INSERT INTO scores VALUES (?, ?, ?, ?, ?, ?)",
                    [(run.id, name, of.mean, of.low, of.high, of.rows) for name, of in run.scores.items()],
                )

    def runs(self, prompt: str | None = None) -> list[PromptRun]:
        """In the order of time. prompt: a name, with @ and the first digits of a version if need be; None: all."""
        if not self.path.is_file():
            raise FileNotFoundError(2, "there is no such history", str(self.path))
        name, _, version = (prompt or "").partition("@")
        chosen = "WHERE prompt = ? AND substr(version, 1, ?) = ?" if prompt else ""
        values = [name, len(version), version] if prompt else []
        with self._open() as database:
            scores: dict[str, dict[str, Estimate]] = {}
            for run, scorer, mean, low, high, rows in database.execute("SELECT * FROM scores ORDER BY rowid"):
                scores.setdefault(run, {})[scorer] = Estimate(known(mean), known(low), known(high), rows)
            found = database.execute(f"SELECT {', '.join(COLUMNS)} FROM runs {chosen} ORDER BY time, id", values)
            return [PromptRun(**dict(zip(COLUMNS, row, strict=True)), scores=scores.get(row[0], {})) for row in found]

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as database, database:
                (layout,) = database.execute("PRAGMA user_version").fetchone()
                if layout not in (0, LAYOUT):
                    raise HistoryError(f"{self.path} was written by another version of pybatch")
                if layout == 0:
                    database.executescript(TABLES + f"PRAGMA user_version = {LAYOUT};")
                yield database
        except sqlite3.OperationalError as error:
            raise OSError(5, f"the history cannot be used: {error}", str(self.path)) from error
        except sqlite3.DatabaseError as error:
            raise HistoryError(f"{self.path} is no history of prompts: {error}") from None


def known(value: float | None) -> float:
    """SQLite has no NaN."""
    return math.nan if value is None else value
