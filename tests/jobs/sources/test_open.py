from __future__ import annotations

import os
from pathlib import Path

import pytest

from pybatch.jobs.sources import open_source


def test_a_file_is_read_again_from_its_start_even_when_its_path_has_gone(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("a\nb\n")
    source = open_source(path)
    first, digest = list(source.rows()), source.digest()
    path.unlink()
    assert source.rereadable
    assert [row.fields["prompt"] for row in first] == ["a", "b"]
    assert list(source.rows()) == first
    assert source.digest() == digest
    path.write_text("a\nc\n")
    assert open_source(path).digest() != digest


def test_a_stream_is_read_once(tmp_path: Path) -> None:
    stdin, (read, write) = os.dup(0), os.pipe()
    os.dup2(read, 0)
    try:
        source = open_source("-")
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(read)
    assert (source.name, source.rereadable, source.digest()) == ("standard input", False, None)
    os.write(write, b'{"prompt": "a"}\n')
    rows = source.rows()
    assert next(rows).fields == {"prompt": "a"}  # as soon as it is there
    os.close(write)
    assert list(rows) == []


@pytest.mark.parametrize("path", [".", "no/such/file"])
def test_what_cannot_be_read_is_refused_at_the_door(path: str) -> None:
    with pytest.raises(OSError, match=path):
        open_source(path)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format: expected one of jsonl"):
        open_source(tmp_path / "rows", format="xml")
