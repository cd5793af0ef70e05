from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pybatch.jobs.journal import Journal, JournalMismatchError, digest_of_rows
from pybatch.jobs.record import Record, checked, with_checksum

HEADER = {"fingerprint": {"model": "m"}}


def record(index: int, result: bytes = b'{"response": "r"}', *, failed: bool = False) -> Record:
    return Record(index, failed, False, 3, 4, 5, 6, result)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "out.journal")


def written(path: str, *records: Record) -> bytes:
    journal = Journal.open(path)
    journal.begin(HEADER)
    for each in records:
        journal.append(each)
    journal.close()
    return Path(path).read_bytes()


@given(
    st.builds(
        Record,
        index=st.integers(0, 2**40),
        failed=st.booleans(),
        from_other_job=st.booleans(),
        prompt_tokens=st.integers(0, 2**31),
        output_tokens=st.integers(0, 2**31),
        key=st.integers(0, 2**64 - 1),
        digest=st.integers(0, 2**64 - 1),
        result=st.binary().map(lambda text: b"{" + text.replace(b"\n", b"")),
    )
)
def test_a_record_is_read_as_it_was_written(record: Record) -> None:
    text = checked(record.to_line())
    assert text is not None
    assert Record.from_text(text) == record


def test_records_come_in_the_order_of_rows_and_of_finishing_and_the_last_one_counts(path: str) -> None:
    written(path, record(2), record(0, failed=True), record(5), record(0, b'{"response": "again"}'))
    journal = Journal.open(path)
    assert journal.header["fingerprint"] == HEADER["fingerprint"]
    assert [each.index for each in journal] == [0, 2, 5]
    assert [each.index for each in journal.as_finished()] == [2, 5, 0]
    assert [each.index for each in journal.following(1)] == [2, 5]
    assert journal[0] == record(0, b'{"response": "again"}')
    assert (journal.done, journal.failed) == (3, 0)
    assert 5 in journal
    assert 1 not in journal
    assert not journal.has_failed(0)
    journal.close()


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_whatever_a_kill_or_a_power_failure_leaves_the_whole_records_are_found(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = str(tmp_path_factory.mktemp("journal") / "journal")
    records = [record(i, b'{"response": "%d"}' % i) for i in range(6)]
    whole = written(path, *records)
    lines = whole.splitlines(keepends=True)
    cut = data.draw(st.integers(len(lines[0]), len(whole)))  # the header is on the disk before the first row runs
    damaged = bytearray(whole[:cut])
    for place in data.draw(st.lists(st.integers(len(lines[0]), max(cut - 1, len(lines[0]))), max_size=2)):
        if place < cut:
            damaged[place] ^= 1 << data.draw(st.integers(0, 7))
    Path(path).write_bytes(damaged)
    journal = Journal.open(path)
    found = list(journal)
    assert all(each in records for each in found)
    end, expected = len(lines[0]), []
    for each, line in zip(records, lines[1:], strict=True):
        if bytes(damaged[end - 1 : end + len(line)]) == b"\n" + line:  # the newline before it begins it
            expected.append(each)
        end += len(line)
    assert [each for each in expected if each not in found] == []
    journal.append(record(9))
    journal.close()
    again = Journal.open(path)
    assert list(again) == [*found, record(9)]
    again.close()


def test_another_file_is_refused_and_left_alone(path: str) -> None:
    Path(path).write_text("my notes\n")
    with pytest.raises(JournalMismatchError, match="is not a journal"):
        Journal.open(path)
    assert Path(path).read_text() == "my notes\n"


def test_a_kill_before_the_header_was_whole_leaves_an_empty_journal(path: str) -> None:
    whole = written(path)
    Path(path).write_bytes(whole[: len(whole) // 2])
    journal = Journal.open(path)
    assert (journal.header, journal.done) == ({}, 0)
    journal.close()


def test_one_process_at_a_time(path: str) -> None:
    journal = Journal.open(path)
    code = "import sys; from pybatch.jobs.journal import Journal; Journal.open(sys.argv[1])"
    ran = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert f"BlockingIOError: [Errno 11] another run of this job is under way: '{path}'" in ran.stderr
    journal.close()
    Journal.open(path).close()


def test_a_full_disk_loses_the_record_that_does_not_fit_alone(path: str) -> None:
    journal = Journal.open(path)
    journal.begin(HEADER)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        journal.append(record(0))
        with pytest.raises(OSError, match=r"out\.journal"):
            journal.append(record(1, b"{" + b"x" * 9000))
        assert 1 not in journal
        journal.append(record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.index for each in journal] == [0, 2]
    journal.close()
    again = Journal.open(path)
    assert [each.index for each in again] == [0, 2]
    again.close()


def test_a_finished_job_keeps_its_records_only_if_some_have_failed(path: str) -> None:
    for failed in (True, False):
        journal = Journal.open(path)
        journal.begin(HEADER)
        journal.append(record(0, failed=failed))
        journal.append(record(1))
        journal.finish()
        journal.close()
        again = Journal.open(path)
        content = digest_of_rows([record(0).digest, record(1).digest])
        assert again.notes == {"finished": True, "rows": 2, "failed": int(failed), "content": content}
        assert again.header == journal.header
        assert again.done == (2 if failed else 0)
        again.close()


def test_rows_that_failed_can_be_forgotten_for_good(path: str) -> None:
    journal = Journal.open(path)
    journal.begin(HEADER)
    for index in range(4):
        journal.append(record(index, failed=index % 2 == 1))
    journal.forget_failed()
    journal.append(record(3))
    for each in (journal, None):
        if each is None:
            journal.close()
            each = Journal.open(path)
        assert [found.index for found in each] == [found.index for found in each.as_finished()] == [0, 2, 3]
        assert (each.done, each.failed, each.has_failed(1)) == (3, 0, False)
    each.close()


def test_the_disk_has_what_was_written_when_it_is_closed(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    sync = os.fdatasync

    def count(fd: int) -> None:
        sync(fd)
        synced.append(os.fstat(fd).st_size)

    monkeypatch.setattr(os, "fdatasync", count)
    whole = written(path, record(0))
    assert synced[-1] == len(whole)


def test_an_error_of_the_disk_is_told_at_the_next_record(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(5, "Input/output error")

    journal = Journal.open(path)
    journal.begin(HEADER)
    monkeypatch.setattr(os, "fdatasync", fail)
    journal.append(record(0))
    journal._syncer.join()
    with pytest.raises(OSError, match="Input/output error") as error:
        journal.append(record(1))
    assert error.value.filename == path
    with pytest.raises(OSError, match="Input/output error"):
        journal.close()


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"layout": 2, "tag": 7}', b"0 0 0 0 1 2 a b c d e f {}"],
        [b'{"pybatch": "0", "tag": 7}', b"0 0 1 2 {}"],
        [b'{"layout": 1, "tag": 7}', b"0 0 1 2 {}"],
        [b'{"layout": 1, "tag": 7}', b'{"no": "note"}'],
        [b"[1]"],
    ],
)
def test_a_journal_of_another_version_is_refused_and_left_alone(path: str, lines: list[bytes]) -> None:
    Path(path).write_bytes(b"".join(map(with_checksum, lines)))
    before = Path(path).read_bytes()
    with pytest.raises(JournalMismatchError, match="was written by another version of pybatch; move it away"):
        Journal.open(path)
    assert Path(path).read_bytes() == before
