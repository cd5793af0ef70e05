"""Batches on a server of this process, whose engine and disk can be made to fail."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from batch_files import chat_row, create, ended, json_lines, lines_of, until
from local_server import LocalServer, local_server

from pybatch import AsyncLLM
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.serve.store import Storage

ENGINE = {"num_kv_blocks": 256, "max_num_seqs": 8, "threads": 1}
LONG = {"max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[AsyncLLM]:
    llm = AsyncLLM(tiny_model, **ENGINE)
    yield llm
    llm.close()


def client_of(server: LocalServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_a_batch_of_another_model_waits_for_it_and_can_be_cancelled(
    llm: AsyncLLM, tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = json_lines(chat_row(i, **(LONG if i > 9 else {})) for i in range(60))
    with local_server(llm, data_dir=tmp_path) as server:
        client = client_of(server)
        batches = [create(client, rows) for _ in range(2)]
        for batch in batches:
            until(lambda batch=batch: client.batches.retrieve(batch.id), done)  # type: ignore[misc]
    other = AsyncLLM(tiny_model, **ENGINE, seed=7)
    with local_server(other, data_dir=tmp_path) as server:
        client = client_of(server)
        until(lambda: caplog.text, lambda text: text.count("waits for a server with what it began with") == 2)
        assert client.batches.retrieve(batches[0].id).status == "in_progress"
        client.batches.cancel(batches[0].id)
        cancelled = ended(client, batches[0])
        assert cancelled.status == "cancelled"
        assert len(lines_of(client, cancelled.output_file_id)) == done(cancelled)
        assert len(lines_of(client, cancelled.error_file_id)) == 60 - done(cancelled)
        assert ended(client, create(client, rows[:100] and json_lines([chat_row(1)]))).status == "completed"
    other.close()
    with local_server(llm, data_dir=tmp_path) as server:
        client = client_of(server)
        assert ended(client, batches[1]).status == "completed"
        assert [batch.id for batch in client.batches.list(limit=10).data][1:] == [batches[1].id, batches[0].id]


def done(batch: openai.types.Batch) -> int:
    return batch.request_counts.completed if batch.request_counts else 0


def test_rows_run_again_that_a_failed_step_of_the_engine_has_discarded(
    llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    with local_server(llm) as server:
        client = client_of(server)
        batch = create(client, json_lines(chat_row(i) for i in range(60)))
        until(lambda: client.batches.retrieve(batch.id), done)
        with monkeypatch.context() as patch:
            fail_once(patch)
            batch = ended(client, batch)
        assert (batch.status, done(batch), batch.error_file_id) == ("completed", 60, None)
        server.expect_idle()


def fail_once(patch: pytest.MonkeyPatch) -> None:
    run = ModelRunner.run

    def failing(self: ModelRunner, *arguments: Any) -> Any:
        patch.setattr(ModelRunner, "run", run)
        raise MemoryError("no memory for a step")

    patch.setattr(ModelRunner, "run", failing)


def test_a_batch_fails_that_the_engine_discards_again_and_again(llm: AsyncLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: Any) -> Any:
        raise MemoryError("no memory for a step")

    with local_server(llm) as server:
        client = client_of(server)
        with monkeypatch.context() as patch:
            patch.setattr(ModelRunner, "run", failing)
            batch = ended(client, create(client, json_lines(chat_row(i) for i in range(9))))
        assert batch.status == "failed"
        assert batch.errors is not None
        (error,) = batch.errors.data or ()
        assert error.code == "server_error"
        assert "no memory for a step" in str(error.message)
        assert ended(client, create(client, json_lines([chat_row(1)]))).status == "completed"


def test_a_full_disk_fails_the_batch_and_nothing_else(llm: AsyncLLM) -> None:
    rows = [chat_row(i, logprobs=True, top_logprobs=20, max_tokens=24, ignore_eos=True) for i in range(200)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with local_server(llm) as server:
        client = client_of(server)
        file = client.files.create(file=json_lines(rows), purpose="batch").id
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        try:
            batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
            batch = ended(client, batch)
            with pytest.raises(openai.InternalServerError, match="the server's disk: File too large"):
                client.files.create(file=b"x" * (2 << 20), purpose="batch")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert batch.status == "failed"
        assert batch.errors is not None
        (error,) = batch.errors.data or ()
        assert (error.code, error.message) == ("server_error", "the batch could not go on: File too large")
        assert 0 < done(batch) < 200
        assert len(lines_of(client, batch.output_file_id)) == done(batch)
        assert [path.name for path in (server.service.storage.folder / "files").iterdir() if path.suffix] == []
        assert ended(client, create(client, json_lines(rows))).status == "completed"


def test_a_batch_that_this_process_cannot_take_up_holds_up_no_other(
    llm: AsyncLLM, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As one that a later version began, with something in its mapping that this one does not know."""
    with local_server(llm, data_dir=tmp_path) as server:
        client = client_of(server)
        batch = create(client, json_lines(chat_row(i, **LONG) for i in range(60)))
        until(lambda: client.batches.retrieve(batch.id), done)
    with Storage(tmp_path) as storage:
        storage.batches.update(batch.id, mapping={"output_format": "papyrus"})
    with local_server(llm, data_dir=tmp_path) as server:
        client = client_of(server)
        assert ended(client, create(client, json_lines([chat_row(1)]))).status == "completed"
        assert client.batches.retrieve(batch.id).status == "in_progress"
        assert f"batch {batch.id} cannot go on in this process" in caplog.text


def test_batches_and_their_rows_are_counted(llm: AsyncLLM) -> None:
    with local_server(llm) as server:
        client, batches = client_of(server), server.service.batches
        ended(client, create(client, b"no\n"))
        ended(client, create(client, json_lines([chat_row(1), chat_row(2, n=0)])))
        totals = batches.totals()
        assert (totals.by_status["completed"], totals.by_status["failed"], sum(totals.by_status.values())) == (1, 1, 2)
        assert (totals.rows_completed, totals.rows_failed) == (1, 1)
        batch = create(client, json_lines(chat_row(i, **(LONG if i else {})) for i in range(40)))
        until(lambda: client.batches.retrieve(batch.id), done)
        assert batches.totals().rows_completed > 1
        assert batches.totals().by_status["in_progress"] == 1
