from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_server import local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.engine import RequestOutput
from pybatch.engine.standing import Standing

USER = {"role": "user", "content": "Hello"}


@pytest.fixture
def slow_llm(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[AsyncLLM]:
    """Answers one request at a time, in seconds."""
    llm = AsyncLLM(tiny_model, threads=1, num_kv_blocks=64, max_num_seqs=1)
    step = llm.engine.step

    def slow_step() -> list[RequestOutput]:
        time.sleep(0.02)
        return step()

    monkeypatch.setattr(llm.engine, "step", slow_step)
    yield llm
    llm.close()


@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_run_is_refused_before_it_waits(slow_llm: AsyncLLM, stream: bool) -> None:
    asked = {"model": "tiny", "messages": [USER], "max_tokens": 400, "ignore_eos": True}
    bad = {**asked, "messages": [{"role": "user", "content": "a" * 600}], "stream": stream}
    with local_server(slow_llm) as server:
        url = f"{server.url}/v1/chat/completions"

        def wait() -> None:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=asked, timeout=3)

        waiting = [threading.Thread(target=wait) for _ in range(4)]  # the engine takes two at a time
        for thread in waiting:
            thread.start()
        while server.service.prompts < len(waiting):
            time.sleep(0.01)
        assert httpx.post(url, json=bad).status_code == 400
        assert server.service.prompts == len(waiting)
        for thread in waiting:
            thread.join()
        server.expect_idle()


@pytest.mark.parametrize("keyed", [False, True])
def test_a_key_is_a_user_whatever_names_its_requests_give(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keyed: bool
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("sk-a alice\n")
    keys.chmod(0o600)
    with (
        closing(AsyncLLM(tiny_model, threads=1, num_kv_blocks=64)) as llm,
        local_server(llm, **({"api_key_file": keys} if keyed else {})) as server,
    ):
        submit, seen = llm.thread.submit, list[Standing]()

        def noted(prompt: Any, params: Any, id: Any, outbox: Any, standing: Standing) -> Any:
            seen.append(standing)
            return submit(prompt, params, id, outbox, standing)

        monkeypatch.setattr(llm.thread, "submit", noted)
        body = {"model": server.service.names[0], "messages": [USER], "max_tokens": 2}
        for url, own in (
            ("/v1/chat/completions", {"user": "bob", "tpot_target": 0.5, "priority": 2}),
            ("/v1/messages", {"metadata": {"user_id": "bob"}}),
        ):
            headers = {"authorization": "Bearer sk-a"}
            assert httpx.post(f"{server.url}{url}", json={**body, **own}, headers=headers).status_code == 200
        user = "alice" if keyed else "bob"
        assert seen == [Standing(user=user, tpot_target=0.5, priority=2), Standing(user=user)]
