from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import threading
from pathlib import Path

import pytest

from pybatch.jobs.disk.line_file import LineFile


def create(path: Path) -> LineFile:
    return LineFile(str(path), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND))


def test_a_line_that_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    path = tmp_path / "out"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    results = create(path)
    results.append(b"first\n")
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))  # as a disk that is full in the middle of a line
    try:
        with pytest.raises(OSError, match="out") as error:
            results.append(b"x" * 10_000 + b"\n")
        results.append(b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    results.close()
    assert error.value.errno == errno.EFBIG
    assert path.read_bytes() == b"first\nsecond\n"


def test_lines_behind_ours_are_not_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    results = LineFile("out", fd)
    os.write(fd, b"half")
    path.open("ab").write(b"of another\n")
    results._take_back(4)
    results.close()
    assert path.read_bytes() == b"halfof another\n"


def test_a_deleted_file_ends_the_job_but_a_renamed_one_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    results = create(folder / "out")
    (folder / "out").rename(folder / "moved")
    results.append(b"row\n")
    assert (folder / "moved").read_bytes() == b"row\n"
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="deleted or replaced while the job was running"):
        results.append(b"row\n")
    results.close()


def test_a_pipe_that_is_slow_gets_whole_lines(tmp_path: Path) -> None:
    """Whatever its number, and though another that has it too has made its writes return at once."""
    read, low = os.pipe()
    os.set_blocking(low, False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    write = fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, 1100)
    os.close(low)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    pieces: list[bytes] = []

    def drain() -> None:
        while piece := os.read(read, 1000):
            pieces.append(piece)

    thread = threading.Thread(target=drain)
    thread.start()
    results = LineFile("-", write)
    results.append(b"x" * 200_000 + b"\n")
    results.close()
    thread.join()
    os.close(read)
    assert b"".join(pieces) == b"x" * 200_000 + b"\n"
