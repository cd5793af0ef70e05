from __future__ import annotations

import os
import pty
from pathlib import Path

import pytest

from pybatch.jobs.files import expect_apart, open_results, open_rows, standard_streams_reserved


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts"
    path.write_text("a\nb\n")
    return path


def test_a_file_is_created_at_once_and_goes_again_if_the_job_never_begins(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_results(str(path), overwrite=False), pytest.raises(FileExistsError, match="--overwrite replaces it"):
        open_results(str(path), overwrite=False)
    assert not path.exists()
    with open_results(str(path), overwrite=False) as results:
        results.begin()
    assert path.read_bytes() == b""


def test_what_another_has_put_in_its_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_results(str(path), overwrite=False) as results:
        (tmp_path / "other").write_text("other")
        (tmp_path / "other").rename(path)
        with pytest.raises(FileNotFoundError, match="deleted or replaced"):
            results.begin()
    assert path.read_text() == "other"


def test_what_another_writes_while_the_model_loads_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with open_results(str(path), overwrite=False) as results:
        path.write_text("other")
        with pytest.raises(FileExistsError, match="another process has written to it"):
            results.begin()
    assert path.read_text() == "other"


def test_old_results_stay_until_the_job_begins(prompts: Path) -> None:
    with open_results(str(prompts), overwrite=True):
        pass
    assert prompts.read_text() == "a\nb\n"
    with open_results(str(prompts), overwrite=True) as results:
        results.begin()
        results.append(b"c\n")
    assert prompts.read_text() == "c\n"


def test_a_link_to_a_file_that_is_not_there_yet_creates_it(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    with open_results(str(tmp_path / "link"), overwrite=False) as results:
        results.begin()
    assert (tmp_path / "target").read_bytes() == b""


@pytest.mark.parametrize("path", ["/dev/full", ".", "no/such/folder"])
def test_what_takes_no_results_is_refused_at_the_door(path: str) -> None:
    with pytest.raises(OSError, match=path):
        open_results(path, overwrite=True)


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
        with open_results(str(path), overwrite=True) as results:
            results.begin()
            results.append(b"row\n")
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(file)
    assert path.read_text() == "before\nrow\n"


def test_standard_streams_are_the_jobs_alone(capfd: pytest.CaptureFixture[str]) -> None:
    stdin, (read, write) = os.dup(0), os.pipe()
    os.dup2(read, 0)
    try:
        rows, results = open_rows("-"), open_results("-", overwrite=False)
        os.write(write, b"a\nb\n")
        with results, standard_streams_reserved():
            assert os.read(0, 1) == b""  # what a question would get as its answer
            os.write(1, b"a library's message\n")
            assert rows.readline() == b"a\n"
            results.append(b"row\n")
        os.close(write)
        assert rows.readline() == b"b\n"
        rows.close()
    finally:
        os.dup2(stdin, 0)
        os.close(stdin)
        os.close(read)
    captured = capfd.readouterr()
    assert captured.out == "row\n"
    assert captured.err == "a library's message\n"
