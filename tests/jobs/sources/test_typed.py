"""Sources whose columns have types: Parquet files, Arrow tables, frames and datasets."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pybatch.jobs.results.tables import join_results
from pybatch.jobs.sources import open_source

ROWS: list[dict[str, Any]] = [
    {"prompt": "a", "n": 1, "x": 0.5, "messages": [{"role": "user", "content": "é"}], "raw": b"\xff"},
    {"prompt": None, "n": None, "x": None, "messages": None, "raw": None},
    {"prompt": "c", "n": 3, "x": 1.5, "messages": [], "raw": b"text"},
]
PLAIN = [{**row, "raw": raw} for row, raw in zip(ROWS, ("/w==", None, "text"), strict=True)]


def parquet_file(folder: Path) -> Path:
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "rows.parquet", row_group_size=2)
    return folder / "rows.parquet"


@pytest.mark.parametrize(
    "make",
    [
        parquet_file,
        lambda _: pa.Table.from_pylist(ROWS),
        lambda _: pl.DataFrame(ROWS),
        lambda _: pl.DataFrame(ROWS).lazy(),
        lambda _: pd.DataFrame(ROWS).astype({"n": "Int64"}),
        lambda _: datasets.Dataset.from_list(ROWS),
        lambda _: datasets.Dataset.from_list(ROWS[::-1]).select([2, 1, 0]),
    ],
    ids=["parquet", "arrow", "polars", "lazy", "pandas", "dataset", "selected"],
)
def test_typed_rows_come_in_jsons_types(make: Callable[[Path], Any], tmp_path: Path) -> None:
    source = open_source(make(tmp_path))
    rows = list(source.rows())
    assert source.typed
    assert source.rereadable
    assert [row.fields for row in rows] == PLAIN
    assert [(row.index, row.place, row.error) for row in rows] == [(n, f"row {n}", None) for n in range(3)]
    assert all(row.size > 0 for row in rows)
    assert list(source.rows()) == rows
    assert source.digest() == open_source(make(tmp_path)).digest() is not None


def test_what_python_has_no_type_for_is_text_or_that_rows_error() -> None:
    bad_text = pa.Array.from_buffers(pa.string(), 2, [None, *pa.array([b"ok", b"\xff\xfe"]).buffers()[1:]])
    table = pa.table(
        {
            "text": bad_text,
            "when": pa.array([1_000_000_001, None], pa.timestamp("ns")),
            "far": pa.array([10**15, 0], pa.timestamp("s")),
            "took": pa.array([1_500, None], pa.duration("ms")),
            "cost": pa.array([Decimal("1.10"), None]),
            "day": pa.array([datetime.date(2024, 1, 2), None]),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        }
    )
    good, bad = open_source(table).rows()
    assert good.error is None
    assert good.fields == {
        "text": "ok",
        "when": "1970-01-01T00:00:01.000000001",
        "far": good.fields["far"],
        "took": "PT1.5S",
        "cost": 1.1,
        "day": "2024-01-02",
        "kind": "x",
        "map": [["k", 1]],
    }
    assert good.fields["far"] == "<value out of range: 1000000000000000>"
    assert bad.error is not None
    assert bad.error.startswith("text: ")
    assert "text" not in bad.fields


def test_frames_keep_what_they_are_given_with_and_names_are_text() -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], 7: [pd.Timestamp("2024-01-02"), pd.NaT]}, index=["x", "x"])
    assert [row.fields for row in open_source(frame).rows()] == [
        {"prompt": "a", "7": "2024-01-02T00:00:00"},
        {"prompt": "b", "7": None},
    ]
    with pytest.raises(ValueError, match="two columns of the name '7'"):
        open_source(pd.DataFrame([[1, 2]], columns=[7, "7"]))
    with pytest.raises(TypeError, match=r"splits; give one of them: data\['train'\]"):
        open_source(datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)))


def test_a_column_of_prompts_is_a_list_of_them() -> None:
    for column in (pd.Series(["a", "b"], index=[5, 6]), pl.Series(["a", "b"]), np.array(["a", "b"])):
        source = open_source(column)
        assert source.rereadable
        assert [row.fields for row in source.rows()] == [{"prompt": "a"}, {"prompt": "b"}]
        assert join_results(source, [{"row": 1, "error": "x"}]) == [{"prompt": "b", "row": 1, "error": "x"}]


def test_a_folder_of_parquet_files_is_typed_and_its_columns_are_united(tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"n": pa.array([2], pa.int64()), "prompt": ["b"], "new": [True]}), tmp_path / "2.parquet")
    source = open_source(tmp_path)
    assert source.typed
    assert [(row.place, row.fields) for row in source.rows()] == [
        ("1.parquet, row 0", {"prompt": "a", "n": 1}),
        ("2.parquet, row 0", {"n": 2, "prompt": "b", "new": True}),
    ]
    assert pa.Table.from_batches(source.batches()).to_pydict() == {  # type: ignore[attr-defined]
        "prompt": ["a", "b"],
        "n": [1, 2],
        "new": [None, True],
    }
    pq.write_table(pa.table({"prompt": [[1]]}), tmp_path / "3.parquet")
    with pytest.raises(OSError, match="do not go together"):
        open_source(tmp_path)


def test_a_damaged_parquet_file_is_one_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    table = pa.table({"prompt": [os.urandom(50).hex() for _ in range(2000)]})
    pq.write_table(table, path, row_group_size=1000, use_dictionary=False, write_page_checksum=True)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(OSError, match="no Parquet file, or damaged") as caught:
        open_source(path)
    assert caught.value.filename == str(path)
    middle = len(data) * 3 // 4
    path.write_bytes(data[:middle] + bytes(1000) + data[middle + 1000 :])
    found = []
    with pytest.raises(OSError, match="no Parquet file, or damaged"):
        found.extend(row.fields["prompt"] for row in open_source(path).rows())
    assert found == table.column("prompt").to_pylist()[:1000]  # the first row group
    read, write = os.pipe()
    os.close(write)
    with pytest.raises(OSError, match="from files alone"):
        open_source(f"/proc/self/fd/{read}", "parquet")
    os.close(read)


def test_whatever_byte_of_a_parquet_file_is_wrong_the_error_names_the_file(tmp_path: Path) -> None:
    path = parquet_file(tmp_path)
    data = path.read_bytes()
    random = Random(0)
    named = []
    for _ in range(100):
        place = random.randrange(len(data) // 2, len(data))  # the half that describes the rest
        path.write_bytes(data[:place] + bytes([random.randrange(256)]) + data[place + 1 :])
        try:
            assert sum(1 for _ in open_source(path).rows()) == len(ROWS)
        except OSError as error:
            named.append(error.filename)
    assert named == [str(path)] * len(named)
    assert len(named) > 30


def test_without_the_libraries_an_input_says_what_it_needs(tmp_path: Path) -> None:
    parquet_file(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a"}\n')
    (tmp_path / "rows.jsonl.zst").write_bytes(b"")
    program = """
import sys
for name in ("pyarrow", "pandas", "polars", "datasets", "zstandard", "numpy"):
    sys.modules[name] = None
from pybatch.jobs.sources import open_source
print([row.fields for row in open_source("rows.jsonl").rows()], [row.fields for row in open_source(["b"]).rows()])
for name in ("rows.parquet", "rows.jsonl.zst"):
    try:
        open_source(name)
    except ValueError as error:
        print(error)
"""
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [
        "[{'prompt': 'a'}] [{'prompt': 'b'}]",
        "rows.parquet needs the package pyarrow: pip install 'pybatch[parquet]'",
        "rows.jsonl.zst needs the package zstandard: pip install 'pybatch[zstd]'",
    ]
