from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pytest
import zstandard

from pybatch.jobs.rows import Source
from pybatch.jobs.sources import INPUT_FORMATS, files_of, open_source, would_read


def prompts(source: Source) -> list[object]:
    return [row.fields["prompt"] for row in source.rows()]


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


def standard_input(fd: int, format: str | None = None) -> Source:
    saved = os.dup(0)
    os.dup2(fd, 0)
    try:
        return open_source("-", format)
    finally:
        os.dup2(saved, 0)
        os.close(saved)
        os.close(fd)


def test_a_stream_is_read_once() -> None:
    read, write = os.pipe()
    source = standard_input(read)
    assert (source.name, source.rereadable, source.digest()) == ("standard input", False, None)
    os.write(write, b'{"prompt": "a"}\n')
    rows = source.rows()
    assert next(rows).fields == {"prompt": "a"}  # as soon as it is there
    os.close(write)
    assert list(rows) == []


def test_standard_input_that_is_a_file_is_read_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_text("taken by another\na\nb\n")
    fd = os.open(path, os.O_RDONLY)
    os.lseek(fd, len("taken by another\n"), os.SEEK_SET)
    source = standard_input(fd, "text")
    assert source.rereadable
    assert prompts(source) == prompts(source) == ["a", "b"]


def test_a_fifo_and_compressed_standard_input_are_streams(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.txt"
    os.mkfifo(fifo)
    writer = threading.Thread(target=fifo.write_bytes, args=(b"a\nb\n",))
    writer.start()
    source = open_source(fifo)
    assert not source.rereadable
    assert prompts(source) == ["a", "b"]
    writer.join()
    read, write = os.pipe()
    os.write(write, gzip.compress(b"a\n") + gzip.compress(b"b\n") + bytes(5000))  # zeros fill a tape's block
    os.close(write)
    assert prompts(standard_input(read, "text")) == ["a", "b"]


def compressed(data: bytes, ending: str) -> bytes:
    return gzip.compress(data) if ending == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(data)


@pytest.mark.parametrize("ending", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("format", "text", "place"),
    [
        ("jsonl", '{"prompt": "é1"}\n{"prompt": "b"}\n', "line 2"),
        ("csv", "prompt,n\né1,1\nb,2\n", "line 3"),
        ("tsv", "prompt\tn\né1\t1\nb\t2\n", "line 3"),
        ("txt", "é1\nb\n", "line 2"),
    ],
)
def test_the_ending_gives_the_format_and_bytes_may_be_compressed(
    tmp_path: Path, format: str, text: str, place: str, ending: str
) -> None:
    data = text.encode()
    (tmp_path / f"rows.{format}").write_bytes(data)
    (tmp_path / f"rows.{format}{ending}").write_bytes(compressed(data, ending))
    (tmp_path / f"renamed.{format}").write_bytes(compressed(data, ending))
    plain = list(open_source(tmp_path / f"rows.{format}").rows())
    assert [row.fields["prompt"] for row in plain] == ["é1", "b"]
    assert plain[1].place == place
    for name in (f"rows.{format}{ending}", f"renamed.{format}"):
        source = open_source(tmp_path / name)
        assert list(source.rows()) == list(source.rows()) == plain


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_damaged_file_is_one_error_that_names_it_after_the_rows_before(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.txt{ending}"
    lines = [f"{n} " + os.urandom(30).hex() for n in range(20_000)]  # which takes half its size
    data = compressed("\n".join(lines).encode(), ending)
    for damaged in (data[: len(data) // 2], data[: len(data) // 2] + bytes(100) + data[len(data) // 2 + 100 :]):
        path.write_bytes(damaged)
        found = []
        with pytest.raises(OSError, match="damaged") as caught:
            found.extend(open_source(path).rows())
        assert caught.value.filename == str(path)
        rows = open_source(path).rows()
        assert [next(rows).fields["prompt"] for _ in range(100)] == lines[:100]
    for wrong in (b"", b"plain\n"):
        path.write_bytes(wrong)
        with pytest.raises(OSError, match=r"not a \w+ file"):
            list(open_source(path).rows())


def test_frames_without_data_are_skipped_as_pzstd_writes_them(tmp_path: Path) -> None:
    skipped = bytes.fromhex("502a4d18 04000000 01020304")  # a frame of four bytes
    path = tmp_path / "rows.txt.zst"
    path.write_bytes(skipped + compressed(b"a\n", ".zst") + skipped + compressed(b"b\n", ".zst"))
    assert prompts(open_source(path)) == ["a", "b"]


def test_a_folder_gives_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.jsonl", "c.txt.gz", ".hidden.txt", "_done.txt", "notes.md", "inner/d.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        text = {"b.csv": "prompt\nb\n", "a.jsonl": '{"prompt": "a"}\n'}.get(name, f"{path.name[0]}\n")
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = open_source(tmp_path)
    assert source.rereadable
    assert not source.typed
    assert [(row.index, row.place, row.fields["prompt"]) for row in source.rows()] == [
        (0, "a.jsonl, line 1", "a"),
        (1, "b.csv, line 2", "b"),
        (2, "c.txt.gz, line 1", "c"),
    ]
    assert files_of(str(tmp_path)) == [str(tmp_path / name) for name in ("a.jsonl", "b.csv", "c.txt.gz")]
    assert prompts(open_source(f"{tmp_path}/[a-z]*.txt*")) == ["c"]
    matched = list(open_source(f"{tmp_path}/**/[cd].txt*").rows())
    assert [(row.place, row.fields["prompt"]) for row in matched] == [
        ("c.txt.gz, line 1", "c"),
        ("inner/d.txt, line 1", "d"),
    ]
    assert [row.place for row in open_source(tmp_path, "text").rows()][-1] == "notes.md, line 1"
    digest = source.digest()
    (tmp_path / "b.csv").write_text("prompt\nc\n")
    assert open_source(tmp_path).digest() != digest


def test_where_one_file_ends_matters_to_the_digest(tmp_path: Path) -> None:
    digests = set()
    for first, second in (("a\n", "b\n"), ("a\nb\n", ""), ("", "a\nb\n")):
        (tmp_path / "1.txt").write_text(first)
        (tmp_path / "2.txt").write_text(second)
        digests.add(open_source(tmp_path).digest())
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("path", "file", "reads"),
    [
        ("in", "in/out.jsonl", True),
        ("in", "link/out.jsonl", True),
        ("in", "in/deep/out.jsonl", False),
        ("in", "out.jsonl", False),
        ("in/a.txt", "in/out.txt", False),
        ("*/*.jsonl", "in/out.jsonl", True),
        ("*/*.jsonl", "in/out.csv", False),
        ("*/*.jsonl", "out.jsonl", False),
        ("*/*.jsonl", "in/deep/out.jsonl", False),
        ("link/*.jsonl", "in/out.jsonl", True),
        ("in/*.jsonl", "link/out.jsonl", True),
        ("**/*.jsonl", "in/deep/out.jsonl", True),
        ("**/*.jsonl", "out.jsonl", True),
        ("**/deep/*", "in/deep/out.jsonl", True),
        ("**/deep/*", "in/out.jsonl", False),
        ("-", "in/out.jsonl", False),
    ],
)
def test_a_folder_and_a_glob_say_what_they_would_read(
    path: str, file: str, reads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.txt", "a.jsonl", "deep/a.jsonl"):
        (tmp_path / "in" / name).touch()
    (tmp_path / "link").symlink_to("in")
    monkeypatch.chdir(tmp_path)
    assert would_read(path, file) == reads
    Path(file).touch()
    assert any(os.path.samefile(each, file) for each in files_of(path) if each != "-") == reads


def test_a_name_that_looks_like_a_glob_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x\n")
    assert prompts(open_source(tmp_path / "a[1].txt")) == ["x"]


@pytest.mark.parametrize(
    ("path", "says"),
    [(".", "no files with known endings"), ("*.csv", "no files that match"), ("no/such/file", "No such file")],
)
def test_what_cannot_be_read_is_refused_at_the_door(
    path: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=says) as caught:
        open_source(path)
    assert caught.value.filename == path


def test_another_format_and_other_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"format: expected one of {', '.join(INPUT_FORMATS)}, got 'xml'"):
        open_source(tmp_path / "rows", format="xml")
    with pytest.raises(ValueError, match="format: is for files"):
        open_source([], format="csv")
    for data in (None, 3, {"prompt": "a"}, b"a"):
        with pytest.raises(TypeError, match=f"got the {type(data).__name__}"):
            open_source(data)


def test_a_csv_header_that_is_wrong_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,a\n1,2\n")
    with pytest.raises(OSError, match="line 1, the header: it names 'a' twice") as caught:
        list(open_source(path).rows())
    assert caught.value.filename == str(path)


def test_lists_and_iterators_are_sources() -> None:
    items = ["a", {"prompt": "b", 1: {2.5}}, 7, {"x": 10**5000}]
    source = open_source(items)
    rows = list(source.rows())
    assert source.rereadable
    assert [(row.index, row.place, row.fields, row.error) for row in rows[:3]] == [
        (0, "row 0", {"prompt": "a"}, None),
        (1, "row 1", {"prompt": "b", "1": [2.5]}, None),
        (2, "row 2", {"line": "7"}, "expected a dict or a string, got int"),
    ]
    assert rows[3].error == "an integer has more than 4,300 digits"
    assert source.digest() == open_source(list(items)).digest() != open_source(items[:2]).digest()
    stream = open_source(item for item in items)
    assert not stream.rereadable
    assert stream.digest() is None
    assert list(stream.rows()) == rows
