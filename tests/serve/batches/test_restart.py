"""Batches on a server that ends in their middle and is started again."""

from __future__ import annotations

import random
import re
import sqlite3
import time
from pathlib import Path

import openai
import pytest
from batch_files import chat_row, create, ended, json_lines, lines_of, until
from live_server import Server, serving
from openai.types import Batch

from pybatch.jobs.record import checked

ROWS = [chat_row(number, max_tokens=24, **({"n": 2} if number % 3 else {})) for number in range(400)]
ROWS[17]["body"]["max_tokens"] = "many"
KILLS = 3


def started(model: Path, folder: Path):  # type: ignore[no-untyped-def]
    return serving(model, "--served-model-name", "tiny", "--data-dir", str(folder), "--max-num-seqs", "4")


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def done(batch: Batch) -> int:
    return batch.request_counts.completed if batch.request_counts else 0


def reach(client: openai.OpenAI, batch: Batch, rows: int) -> Batch:
    return until(lambda: client.batches.retrieve(batch.id), lambda now: done(now) >= rows)


def records(folder: Path, batch: Batch) -> dict[bytes, bytes]:
    """The rows in a batch's journal that are whole; the last record of each."""
    journal = folder / "batches" / batch.id / "output.jsonl.journal"
    texts = [checked(line) for line in journal.read_bytes().splitlines(keepends=True)]
    return dict(text.split(b" ", 1) for text in texts if text is not None and not text.startswith(b"{"))


def files_of(client: openai.OpenAI, batch: Batch) -> list[bytes]:
    """The bytes of both files, without the dates that two batches have."""
    ids = (batch.output_file_id, batch.error_file_id)
    return [re.sub(rb'"created": \d+', b"", client.files.content(str(id)).read()) for id in ids]


def test_nothing_is_lost_or_run_twice_whatever_ends_the_server(tiny_model: Path, tmp_path: Path) -> None:
    moments = random.Random(7)
    with started(tiny_model, tmp_path) as server:
        client = client_of(server)
        whole = create(client, json_lines(ROWS), metadata={"part": "whole"})
        expected = files_of(client, ended(client, whole))
        batch = create(client, json_lines(ROWS))
        reach(client, batch, moments.randint(1, 40))
        server.process.kill()
    before = records(tmp_path, batch)
    for _ in range(KILLS - 1):
        with started(tiny_model, tmp_path) as server:
            reach(client_of(server), batch, len(before) + moments.randint(1, 40))
            server.process.kill()
        after = records(tmp_path, batch)
        assert {index: after.get(index) for index in before} == before
        before = after

    with started(tiny_model, tmp_path) as server:
        client = client_of(server)
        assert client.batches.retrieve(whole.id).metadata == {"part": "whole"}
        late = create(
            client, json_lines(chat_row(i, max_tokens=400 if i > 9 else 1, ignore_eos=True) for i in range(64))
        )
        reach(client, late, 1)
        assert reach(client, batch, len(before) + 1).status == "in_progress"
        kept = client.files.create(file=b"x", purpose="batch")
        assert server.stop() == 0
        assert not any("Traceback" in line for line in server.lines), "".join(server.lines)
    after = records(tmp_path, batch)
    assert {index: after.get(index) for index in before} == before

    change(tmp_path, "UPDATE batches SET expires_at = ? WHERE id = ?", time.time() - 1, late.id)
    change(tmp_path, "UPDATE files SET expires_at = ? WHERE id = ?", time.time() - 1, kept.id)
    with started(tiny_model, tmp_path) as server:
        client = client_of(server)
        batch = ended(client, batch)
        assert batch.status == "completed"
        assert (batch.request_counts, batch.usage) == (
            (now := client.batches.retrieve(whole.id)).request_counts,
            now.usage,
        )
        assert files_of(client, batch) == expected
        assert sorted(path.name for path in (tmp_path / "batches" / batch.id).iterdir()) == [
            "errors.jsonl",
            "output.jsonl",
        ]

        late = ended(client, late)
        assert late.status == "expired"
        assert late.expired_at is not None
        answered, rest = lines_of(client, late.output_file_id), lines_of(client, late.error_file_id)
        assert answered
        assert len(answered) + len(rest) == 64
        assert {line["error"]["code"] for line in rest} == {"batch_expired"}
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(kept.id)
        until(lambda: (tmp_path / "files" / kept.id).exists(), lambda there: not there)


def change(folder: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(folder / "server.sqlite3") as database:
        assert database.execute(statement, values).rowcount == 1
    database.close()
