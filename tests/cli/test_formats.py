"""Jobs whose rows and results are in all formats."""

from __future__ import annotations

import datetime
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from cli_command import FAST, Cli
from pyarrow import parquet as pq

from pybatch.jobs.sources import open_source

Answer = Callable[..., tuple[int, str]]
PROMPTS = [f"Say {i}, é" for i in range(5)]


@pytest.fixture
def answer(cli: Cli, tiny_model: Path) -> Answer:
    """Returns the command's code and what it says."""

    def run(rows: str | Path, results: Path, *flags: str) -> tuple[int, str]:
        code, _, err = cli("run", rows, "-o", results, "--model", tiny_model, *FAST, *flags)
        return code, err

    return run


def read(path: Path) -> list[dict[str, Any]]:
    return [row.fields for row in open_source(path).rows()]


def test_the_answers_are_the_same_whatever_the_formats(answer: Answer, tmp_path: Path) -> None:
    lines = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS)
    (tmp_path / "rows.jsonl").write_text(lines)
    quoted = "".join(f'{n},"{prompt}"\n' for n, prompt in enumerate(PROMPTS))
    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(f"id,prompt\n{quoted}".encode()))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "1.txt").write_text("\n".join(PROMPTS[:2]))
    (tmp_path / "folder" / "2.tsv").write_text("prompt\n" + "\n".join(PROMPTS[2:]))
    pq.write_table(pa.table({"prompt": PROMPTS}), tmp_path / "rows.parquet")
    expected = None
    for rows, results in (
        ("rows.jsonl", "1.jsonl.zst"),
        ("rows.jsonl", "2.parquet"),
        ("rows.csv.gz", "3.csv"),
        ("rows.parquet", "4.parquet"),
        ("rows.parquet", "5.tsv.gz"),
        ("folder", "6.csv"),
        ("folder/*", "7.jsonl"),
    ):
        path = tmp_path / results
        code, err = answer(tmp_path / rows, path)
        assert code == 0, err
        found = read(path)
        assert [row["prompt"] for row in found] == PROMPTS
        assert [int(row["row"]) for row in found] == list(range(5))
        expected = expected or [row["response"] for row in found]
        assert [row["response"] for row in found] == expected
        usage = found[0]["usage"]
        assert set(json.loads(usage) if isinstance(usage, str) else usage) == {"prompt_tokens", "completion_tokens"}
    assert answer(tmp_path / "rows.parquet", tmp_path / "4.parquet")[1].startswith("Done already")


def test_errors_need_a_file_of_their_own(answer: Answer, tmp_path: Path) -> None:
    rows, results = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text('{"prompt": "a"}\n{}\n')
    (tmp_path / "link").symlink_to(results)
    for errors, what in ((results, "results"), (tmp_path / "link", "results"), (f"{results}.journal", "journal")):
        for fresh in ([], ["--fresh"]):
            code, err = answer(rows, results, "--error-file", str(errors), *fresh)
            assert code == 2
            assert f"is the file of the {what}; the errors need one of their own" in err.replace("\n", " ")
    assert not results.exists()


def test_parquet_keeps_its_columns_and_failed_rows_can_be_fed_back(answer: Answer, tmp_path: Path) -> None:
    when = pa.array([datetime.datetime(2024, 1, day) for day in range(1, 4)], pa.timestamp("us", "UTC"))
    table = pa.table({"prompt": ["a", None, "c"], "when": when, "row": [7, 8, 9]}).replace_schema_metadata({"k": "v"})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    code, err = answer(tmp_path / "rows.parquet", tmp_path / "results.parquet")
    assert code == 1
    assert "row 1: prompt: expected text, got null" in err
    joined = pq.read_table(tmp_path / "results.parquet")
    assert joined.schema.metadata[b"k"] == b"v"
    assert joined.select(["prompt", "when", "input_row"]).rename_columns(table.column_names).equals(table)
    assert [error is None for error in joined.column("error").to_pylist()] == [True, False, True]
    assert [text is None for text in joined.column("response").to_pylist()] == [False, True, False]
    errors = tmp_path / "results.parquet.errors.jsonl"
    (failed,) = read(errors)
    assert failed["when"] == "2024-01-02T00:00:00+00:00"
    assert answer(errors, tmp_path / "again.jsonl", "--prompt-template", "{when}")[0] == 0
    (again,) = read(tmp_path / "again.jsonl")
    assert "response" in again


@pytest.mark.parametrize(
    ("name", "data", "results", "flags", "says"),
    [
        (
            "rows.jsonl.gz",
            gzip.compress(b'{"prompt": "a"}\n' * 9, mtime=0)[:-9],
            "out.jsonl",
            [],
            "rows.jsonl.gz: damaged",
        ),
        ("rows.parquet", b"PAR1 cut", "out.jsonl", [], "rows.parquet: no Parquet file, or damaged"),
        ("rows.csv", b"a,a\n1,2\n", "out.jsonl", [], "rows.csv: line 1, the header: it names 'a' twice"),
        ("rows.txt", b"a\n", "out.parquet.gz", [], "a Parquet file is compressed inside"),
        ("rows.txt", b"a\n", "out.csv", ["--unordered"], "unordered"),
        ("rows.txt", b"a\n", "out.jsonl", ["--input-format", "parquet"], "rows.txt: no Parquet file, or damaged"),
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_line(
    answer: Answer, tmp_path: Path, name: str, data: bytes, results: str, flags: list[str], says: str
) -> None:
    (tmp_path / name).write_bytes(data)
    code, err = answer(tmp_path / name, tmp_path / results, *flags)
    assert code == 2
    assert says in err
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_bad_rows_of_every_kind_leave_the_others_as_they_are(answer: Answer, tmp_path: Path) -> None:
    poison = {
        b'{"prompt": "cut': "not valid JSON",
        b'{"prompt": "\xff"}': "not UTF-8",
        b'{"prompt": "\x00"}': "not valid JSON",
        b'{"prompt": "' + b"long " * 10_000_000 + b'"}': "longer than the 32 MiB",
        b'{"prompt": ' + b"[" * 100_000: "nested more than 256 levels deep",
        b'{"prompt": "a", "x": 1e400}': "out of range",
        b'{"prompt": "\\ud800"}': "prompt",
        b'{"prompt": "' + b"long " * 5000 + b'"}': "tokens; expected at most",
        b'{"prompt": "a", "temperature": -1}': "temperature",
        b'{"messages": [{"role": "nobody", "content": "a"}]}': "role",
    }
    good = [json.dumps({"prompt": f"Say {i}"}).encode() for i in range(100)]
    bad = dict(zip(range(3, 100, 10), poison, strict=True))
    (tmp_path / "good.jsonl").write_bytes(b"\n".join(good))
    (tmp_path / "bad.jsonl").write_bytes(b"\n".join(bad.get(i, line) for i, line in enumerate(good)))
    sampled = ["--temperature", "1"]
    assert answer(tmp_path / "good.jsonl", tmp_path / "expected.jsonl", *sampled)[0] == 0
    code, err = answer(tmp_path / "bad.jsonl", tmp_path / "results.jsonl", *sampled)
    assert code == 1
    expected = (tmp_path / "expected.jsonl").read_bytes().splitlines()
    results = (tmp_path / "results.jsonl").read_bytes().splitlines()
    assert len(results) == 100
    for i in range(100):
        if i in bad:
            error = json.loads(results[i])["error"]
            assert error.startswith(f"line {i + 1}: ")
            assert poison[bad[i]] in error
            assert f"line {i + 1}: " in err or "long " * 5000 in bad[i].decode(errors="replace")  # known once tokenised
        else:
            assert results[i] == expected[i]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
def test_batches_may_be_parquet(answer: Answer, tmp_path: Path, kind: str) -> None:
    body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "Say 1"}]}
    asks = {"method": "POST", "url": "/v1/chat/completions", "body": body} if kind == "openai" else {"params": body}
    rows = [{"custom_id": f"c{n}", **asks} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("rows.parquet", "rows.jsonl"):
        results = tmp_path / f"results.of.{name}"
        code, err = answer(tmp_path / name, results, "--seed", "1")
        assert code == 0, err
        found = read(results)
        assert [row["custom_id"] for row in found] == ["c0", "c1", "c2"]
        assert all(row["response" if kind == "openai" else "result"] for row in found)
        assert "row" not in found[0]
