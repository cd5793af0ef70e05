from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from pybatch.api.outcomes import Answer, Failure, Sample
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.results.tables import join_results, write_joined
from pybatch.jobs.sources import open_source

USAGE = {"prompt_tokens": 3, "completion_tokens": 1}
PROMPTS = ["a", None, "c"]
WHEN = [datetime.datetime(2024, 1, 2, 3), None, datetime.datetime(2024, 1, 3)]


def results(source: Any) -> list[dict[str, Any]]:
    """Two answers and a failure, as the dialect gives them."""
    outcomes = [
        Answer(3, (Sample("one", 1, "stop"),)),
        Failure("no prompt"),
        Answer(3, (Sample("three", 1, "length"),)),
    ]
    return [
        PlainDialect().result(row, outcome, fields=isinstance(outcome, Failure))
        for row, outcome in zip(source.rows(), outcomes, strict=True)
    ]


ADDED = {
    "row": [0, 1, 2],
    "response": ["one", None, "three"],
    "finish_reason": ["stop", None, "length"],
    "usage": [USAGE, None, USAGE],
    "error": [None, "row 1: no prompt", None],
}


def arrow() -> pa.Table:
    schema = pa.schema(
        [
            pa.field("prompt", pa.large_string(), metadata={"unit": "words"}),
            pa.field("when", pa.timestamp("ms", "UTC")),
            pa.field("cost", pa.decimal128(10, 2)),
            pa.field("response", pa.int8()),
        ],
        metadata={"made": "here"},
    )
    columns = [PROMPTS, WHEN, [Decimal("1.10")] * 3, [1, 2, 3]]
    return pa.Table.from_arrays(
        [pa.array(of, field.type) for of, field in zip(columns, schema, strict=True)], schema=schema
    )


def expect_joined(joined: pa.Table, table: pa.Table) -> None:
    assert joined.schema.metadata[b"made"] == b"here"
    assert joined.column_names == ["prompt", "when", "cost", "input_response", *ADDED]
    for old, new in zip(table.schema, joined.schema, strict=False):
        assert (new.type, new.metadata) == (old.type, old.metadata)
    assert joined.select(range(4)).rename_columns(table.column_names).equals(table)
    assert joined.select(list(ADDED)).to_pydict() == ADDED
    assert joined.schema.field("usage").type == pa.struct([(name, pa.int64()) for name in USAGE])


def test_arrow_and_parquet_keep_types_and_metadata(tmp_path: Path) -> None:
    table = arrow()
    source = open_source(table)
    expect_joined(join_results(source, results(source)), table)
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=2)
    for each in (open_source(tmp_path / "rows.parquet"), source):
        file = io.BytesIO()
        found = results(each)
        write_joined(file, each, lambda found=found: found)  # type: ignore[misc]
        expect_joined(pq.read_table(file), table)


def test_pandas_keeps_its_index_and_types() -> None:
    frame = pd.DataFrame(
        {"prompt": PROMPTS, "when": WHEN, "usage": [1.5, np.nan, 2.5], 7: pd.Categorical(["x", "y", "x"])},
        index=pd.Index(["i", "j", "i"], name="key"),
    )
    before = frame.copy(deep=True)
    source = open_source(frame)
    joined = join_results(source, results(source))
    assert list(joined.columns) == ["prompt", "when", "input_usage", 7, *ADDED]
    pd.testing.assert_frame_equal(
        joined[["prompt", "when", "input_usage", 7]].rename(columns={"input_usage": "usage"}), before
    )
    assert joined["row"].dtype == np.int64
    for name, values in ADDED.items():
        assert [None if pd.api.types.is_scalar(value) and pd.isna(value) else value for value in joined[name]] == values
    pd.testing.assert_frame_equal(frame, before)
    file = io.BytesIO()
    write_joined(file, source, lambda: results(source))
    pd.testing.assert_index_equal(pd.read_parquet(file).index, frame.index)


def test_polars_keeps_its_types() -> None:
    frame = pl.DataFrame({"prompt": PROMPTS, "when": WHEN, "row": ["x", "y", "x"]}).cast({"row": pl.Categorical})
    source = open_source(frame)
    joined = join_results(source, results(source))
    assert joined.columns == ["prompt", "when", "input_row", *ADDED]
    assert joined.select("prompt", "when", pl.col("input_row").alias("row")).equals(frame)
    assert joined.select(list(ADDED)).to_dict(as_series=False) == ADDED
    assert joined.schema["row"] == pl.Int64
    assert joined.schema["usage"] == pl.Struct(dict.fromkeys(USAGE, pl.Int64))


def test_a_dataset_keeps_its_features() -> None:
    features = datasets.Features({"prompt": datasets.Value("string"), "error": datasets.ClassLabel(names=["x", "y"])})
    dataset = datasets.Dataset.from_dict({"prompt": PROMPTS[::-1], "error": [0, 1, 0]}, features).select([2, 1, 0])
    source = open_source(dataset)
    joined = join_results(source, results(source))
    assert isinstance(joined, datasets.Dataset)
    assert joined.features["input_error"] == features["error"]
    assert {name: joined[name][:] for name in ADDED} == ADDED
    assert joined["prompt"][:] == PROMPTS


def test_a_list_of_dicts_keeps_its_objects() -> None:
    when = datetime.date(2024, 1, 2)
    items = [{"prompt": "a", "when": when, "row": "mine"}, "text", {"prompt": "c"}]
    source = open_source(items)
    joined = join_results(source, results(source))
    answers = [{name: ADDED[name][row] for name in ("row", "response", "finish_reason", "usage")} for row in (0, 2)]
    assert joined == [
        {"prompt": "a", "when": when, "input_row": "mine", **answers[0]},
        {"prompt": "text", "row": 1, "error": "row 1: no prompt"},
        {"prompt": "c", **answers[1]},
    ]
    stream = open_source(iter(items))
    assert join_results(stream, [{"prompt": "a", "row": 0}]) == [{"prompt": "a", "row": 0}]


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (lambda: pa.table({"prompt": PROMPTS}), lambda joined: joined.to_pylist()),
        (lambda: pl.DataFrame({"prompt": PROMPTS}), lambda joined: joined.to_dicts()),
        (lambda: pd.DataFrame({"prompt": PROMPTS}), lambda joined: joined.to_dict("records")),
        (lambda: datasets.Dataset.from_dict({"prompt": PROMPTS}), lambda joined: joined.to_list()),
        (lambda: [{"prompt": prompt} for prompt in PROMPTS], lambda joined: joined),
    ],
    ids=["arrow", "polars", "pandas", "dataset", "list"],
)
def test_rows_without_a_result_are_left_out(
    make: Callable[[], Any], rows: Callable[[Any], list[dict[str, Any]]]
) -> None:
    source = open_source(make())
    first, _, last = results(source)
    assert [(row["prompt"], row["row"], row["response"]) for row in rows(join_results(source, [first, last]))] == [
        ("a", 0, "one"),
        ("c", 2, "three"),
    ]
    assert rows(join_results(source, [])) == []
    if source.typed:
        file = io.BytesIO()
        write_joined(file, source, lambda: [last])
        assert [row["response"] for row in pq.read_table(file).to_pylist()] == ["three"]


def test_several_samples_are_lists_and_an_empty_table_has_the_same_columns() -> None:
    source = open_source(pa.table({"prompt": ["a"]}))
    many = [{"row": 0, "response": ["x", "y"], "finish_reason": ["stop", "stop"], "usage": USAGE}]
    joined = join_results(source, many)
    assert joined.schema.field("response").type == pa.list_(pa.string())
    assert joined.schema.field("error").type == pa.string()
    assert join_results(source, []).schema.names == ["prompt", *ADDED]
    label = datasets.Features({"row": datasets.ClassLabel(names=["a", "b"])})
    for empty in (datasets.Dataset.from_dict({"row": []}, label), datasets.Dataset.from_dict({"row": [0]}, label)):
        joined = join_results(open_source(empty), [])
        assert joined.column_names == ["input_row", *ADDED]
        assert joined.features["input_row"] == label["row"]


def test_results_of_batches_add_their_own_columns() -> None:
    rows = [{"custom_id": "a", "params": {}}, {"custom_id": "b", "params": {}}]
    found = [
        {"row": n, "custom_id": row["custom_id"], "result": {"type": "x"}, "id": f"r{n}"} for n, row in enumerate(rows)
    ]
    joined = join_results(open_source(pd.DataFrame(rows)), found)
    assert list(joined.columns) == ["custom_id", "params", *ADDED, "result", "id"]
    assert joined["result"].tolist() == [{"type": "x"}] * 2
    assert join_results(open_source(rows), found)[1] == {**rows[1], "row": 1, "result": {"type": "x"}, "id": "r1"}


def test_results_may_hold_the_rows_own_fields() -> None:
    frame = pd.DataFrame({"prompt": ["a"], 7: [1], "row": ["x"]})
    own = {"prompt": "a", "7": 1, "input_row": "x"}
    joined = join_results(open_source(frame), [{**own, "row": 0, "response": "r"}])
    assert list(joined.columns) == ["prompt", 7, "input_row", *ADDED]


def test_other_sources_are_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    source = open_source(tmp_path / "rows.jsonl")
    with pytest.raises(TypeError, match="expected a typed one, got FileSource"):
        write_joined(io.BytesIO(), source, list)
    with pytest.raises(TypeError, match="expected one of data in memory, got FileSource"):
        join_results(source, [])
