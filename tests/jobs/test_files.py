from __future__ import annotations

import os
import pty
import time
from pathlib import Path

import pytest

from pybatch.jobs.files import created, expect_all_apart, expect_apart, open_stream, standard_streams_reserved
from pybatch.jobs.results.destination import Destination
from pybatch.jobs.sources import open_source


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts"
    path.write_text("a\nb\n")
    return path


def test_what_was_changed_last_dates_the_results(prompts: Path, tmp_path: Path) -> None:
    others = [tmp_path / "folder" / name for name in ("a.jsonl", "b.jsonl")]
    others[0].parent.mkdir()
    for seconds, path in enumerate((prompts, *others)):
        path.touch()
        os.utime(path, (1_700_000_000 + seconds, 1_700_000_000 + seconds))
    assert created(str(prompts)) == 1_700_000_000
    assert created(str(tmp_path / "folder")) == created(str(tmp_path / "folder/*")) == 1_700_000_002
    read, _ = pipe = os.pipe()
    assert abs(created(f"/dev/fd/{read}") - time.time()) < 60
    for fd in pipe:
        os.close(fd)


@pytest.mark.parametrize("path", ["/dev/full", ".", "no/such/folder"])
def test_what_takes_no_results_is_refused_at_the_door(path: str) -> None:
    with pytest.raises(OSError, match=path):
        open_stream(path)


def test_a_file_is_no_stream(prompts: Path, tmp_path: Path) -> None:
    assert open_stream(str(prompts)) is None
    assert open_stream(str(tmp_path / "new")) is None


def test_results_inside_the_folder_of_the_rows_are_refused(prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="in the folder of the prompts"):
        expect_apart(str(tmp_path / "out"), rows=str(tmp_path))


def test_results_that_the_glob_of_the_rows_matches_are_refused(tmp_path: Path) -> None:
    rows = f"{tmp_path}/*.jsonl"
    with pytest.raises(FileExistsError, match=r"out\.jsonl is one of .*\*\.jsonl, the prompts"):
        expect_apart(str(tmp_path / "out.jsonl"), rows=rows)
    expect_apart(str(tmp_path / "out.csv"), rows=rows)
    expect_apart("-", rows="*")


def test_every_file_that_a_job_writes_is_apart_from_its_rows(prompts: Path, tmp_path: Path) -> None:
    output = str(tmp_path / "results" / "out.jsonl")
    for to, rows, refused in (
        (Destination(output), f"{tmp_path}/results/*.errors.jsonl", "out.errors.jsonl"),
        (Destination(output), f"{tmp_path}/results/*.journal", "out.jsonl.journal"),
        (Destination(output, error_file=str(prompts)), str(prompts), "prompts"),
        (Destination(output, error_file=str(tmp_path / "errors.csv")), str(tmp_path), "errors.csv"),
    ):
        with pytest.raises(FileExistsError, match=f"{refused} .*the prompts"):
            expect_all_apart(to.files, rows=rows)
    expect_all_apart(Destination(output).files, rows=str(tmp_path))
    expect_all_apart(Destination("-").files, rows="*")


def test_outputs_that_differ_in_their_endings_have_error_files_of_their_own() -> None:
    names = ("w.jsonl", "w.csv", "w.csv.gz", "w.tsv", "w.parquet", "w.jsonl.gz")
    errors = [Destination(name).errors for name in names]
    assert errors[:3] == ["w.errors.jsonl", "w.csv.errors.jsonl", "w.csv.gz.errors.jsonl"]
    assert len(set(errors)) == len(names)


def test_the_rows_file_is_refused_however_it_is_reached(prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "soft").symlink_to(prompts)
    (tmp_path / "hard").hardlink_to(prompts)
    os.mkfifo(tmp_path / "fifo")
    own, standard = os.open(prompts, os.O_RDWR | os.O_APPEND), (os.dup(0), os.dup(1))
    named, other = str(prompts), str(tmp_path / "other")
    try:
        os.dup2(own, 0)
        pairs = [(named, str(tmp_path / "soft")), (named, str(tmp_path / "hard")), (named, f"/proc/self/fd/{own}")]
        pairs += [("-", named), ("/dev/stdin", named), (str(tmp_path / "fifo"), str(tmp_path / "fifo"))]
        for rows, results in pairs:
            with pytest.raises(FileExistsError, match="holds the prompts"):
                expect_apart(results, rows=rows)
        with pytest.raises(FileExistsError, match=f"holds {named}"):
            expect_apart(named, rows=other, others=(None, named))
        expect_apart(other, rows=named)
        os.dup2(own, 1)
        with pytest.raises(FileExistsError, match="holds the prompts"):
            expect_apart("-", rows=named)
    finally:
        for fd, saved in enumerate(standard):
            os.dup2(saved, fd)
            os.close(saved)
        os.close(own)


def test_a_terminal_may_be_both() -> None:
    ours, theirs = pty.openpty()
    name = os.ttyname(theirs)
    expect_apart(name, rows=name)
    expect_apart("/dev/null", rows="/dev/null")
    os.close(ours)
    os.close(theirs)


def test_dev_stdout_keeps_what_stands_in_its_file(tmp_path: Path) -> None:
    path, stdout = tmp_path / "out", os.dup(1)
    path.write_text("before\n")
    file = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    try:
        results = open_stream(str(path))
        assert results is not None
        results.append(b"row\n")
        results.close()
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(file)
    assert path.read_text() == "before\nrow\n"


def test_standard_streams_are_the_jobs_alone(capfd: pytest.CaptureFixture[str]) -> None:
    stdin, (read, write) = os.dup(0), os.pipe()
    os.dup2(read, 0)
    try:
        source, results = open_source("-", "text"), open_stream("-")
        assert results is not None
        os.write(write, b"a\nb\n")
        with standard_streams_reserved():
            assert os.read(0, 1) == b""  # what a question would get as its answer
            os.write(1, b"a library's message\n")
            rows = source.rows()
            os.close(write)
            assert [row.fields for row in rows] == [{"prompt": "a"}, {"prompt": "b"}]
            results.append(b"row\n")
        results.close()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(read)
    captured = capfd.readouterr()
    assert captured.out == "row\n"
    assert captured.err == "a library's message\n"
