from __future__ import annotations

from pathlib import Path

import pytest

from pybatch.jobs.journal import Journal
from pybatch.jobs.record import Record
from pybatch.jobs.results.growing_file import GrowingFile


def opened(path: Path) -> tuple[Journal, GrowingFile]:
    journal = Journal.open(f"{path}.journal")
    if journal.header.get("fingerprint") is None:
        journal.begin({"fingerprint": {"model": "m"}})
    return journal, GrowingFile(str(path), f"{path}.errors", journal)


def close(journal: Journal, file: GrowingFile) -> None:
    file.close()
    journal.close()


def test_a_file_that_another_has_changed_is_kept_once_failed_rows_have_left_it(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    journal, file = opened(path)
    file.begin()
    for index in range(4):
        record = Record(index, index == 1, False, 3, 4, 5, 6, b'{"response": "%d"}' % index)
        journal.append(record)
        file.saved(record)
    close(journal, file)
    assert len(path.read_text().splitlines()) == 4

    journal, file = opened(path)
    journal.forget_failed()
    close(journal, file)  # killed before the file is written anew
    journal, file = opened(path)
    file.begin()
    close(journal, file)
    kept = path.read_text()
    assert [f'"{index}"' in kept for index in range(4)] == [True, False, True, True]

    path.write_text("mine\n")
    journal, file = opened(path)
    with pytest.raises(FileExistsError, match="is not as this job left it"):
        file.begin()
    close(journal, file)
    assert path.read_text() == "mine\n"
