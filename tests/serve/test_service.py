from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from local_server import local_server

from pybatch.api.async_llm import AsyncLLM
from pybatch.engine import RequestOutput

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
