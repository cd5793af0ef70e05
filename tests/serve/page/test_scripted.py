"""What the page does with servers that no test can have of the real one: scripted answers, with the real page."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from axe_core_python.selenium import Axe
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse

from pybatch.serve.routes.page import router

NOTHING = "\u2013"  # in the place of a figure that is not known
MARKUP = '<img src=x onerror="document.title=1"><b>bold</b>'
KEY = "secret"


class Scripted:
    """A server on a port of its own, whose texts are markup. Its load is constant, and its points are as old as time.

    key: what it asks for, or None. asked: the paths of all requests. cancelled: the batches that have been.
    """

    def __init__(self) -> None:
        self.key: str | None = None
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.pieces = [MARKUP[:9], MARKUP[9:]]
        self.pause = 0.0
        self.app = FastAPI()
        self.app.include_router(router)
        self.app.middleware("http")(self.guard)
        self.app.get("/stats")(self.stats)
        self.app.get("/v1/models")(self.models)
        self.app.get("/v1/batches")(self.batches)
        self.app.get("/v1/messages/batches")(self.message_batches)
        self.app.post("/v1/batches/{name:path}/cancel")(self.cancel)
        self.app.post("/v1/messages/batches/{name}/cancel")(self.cancel)
        self.app.post("/v1/chat/completions")(self.chat)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        config = uvicorn.Config(self.app, port=self.port, log_level="error", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join()

    async def guard(self, request: Request, answer: Any) -> Any:
        path = request.url.path
        self.asked.append(path)
        opened = path == "/" or path.startswith("/page/")
        if not opened and self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "no such key"}}, 401)
        return await answer(request)

    async def stats(self, since: float = 0.0) -> dict[str, Any]:
        now = time.time()
        times = [now - 300 + second for second in range(300) if now - 300 + second > since]
        gpu = {"index": 0, "name": MARKUP, "memory_total": 80 << 30, "memory_used": 70 << 30, "utilization": 0.93}
        request = {
            **{"id": "0123456789abcdef", "route": MARKUP, "key": MARKUP, "state": MARKUP, "status": None},
            **{"prompt_tokens": 1234, "output_tokens": 56, "seconds": 3.0, "ttft": 0.125, "tpot": 0.03125},
            "finish_reasons": [MARKUP],
        }
        others = [{**request, "id": f"{i:08x}"} for i in range(20)]
        point = {
            **{"running": 12, "waiting": 3, "kv_usage": 0.25, "output_tokens": 123.4, "prompt_tokens": 1000.0},
            **{"ttft_p50": 0.125, "ttft_p99": 1.5, "tpot_p50": None, "tpot_p99": None, "cpu": 0.5},
            **{"memory_used": 8 << 30, "process_cpu": 1.5, "disk_read": 0.0, "disk_written": 1024.0},
            **{"network_received": 0.0, "network_sent": 2048.0},
        }
        return {
            "now": now,
            "server": {
                **{"version": MARKUP, "model": MARKUP, "device": "cpu", "started": now - 7300},
                **{"max_model_len": 512, "max_num_seqs": 64, "kv_blocks": 2048, "block_size": 16},
            },
            "series": {"time": times, **{name: [value] * len(times) for name, value in point.items()}},
            "machine": {
                **{"memory_total": 16 << 30, "memory_available": 8 << 30, "process_memory": 1 << 30},
                "disks": {MARKUP: {"total": 100 << 30, "free": 25 << 30}},
                "gpus": [{**gpu, "power": 412.3, "temperature": 61.0}, {**dict.fromkeys(gpu), "index": 1, "name": "?",
                          "power": None, "temperature": None}],
            },
            "requests": {"running": [request], "finished": others},
        }  # fmt: skip

    async def models(self) -> dict[str, Any]:
        return {"data": [{"id": MARKUP}]}

    async def batches(self) -> dict[str, Any]:
        def batch(name: str, status: str, completed: int, failed: int) -> dict[str, Any]:
            counts = {"total": 400, "completed": completed, "failed": failed}
            state = "cancelled" if name in self.cancelled else status
            created = int(time.time()) - 7400
            return {"id": name, "endpoint": MARKUP, "status": state, "request_counts": counts, "created_at": created}

        states = [("in_progress", 96, 4), ("completed", 400, 0), ("failed", 0, 0), ("cancelled", 3, 0)]
        return {"data": [batch(f"batch_{MARKUP}{i}", *state) for i, state in enumerate(states)]}

    async def message_batches(self) -> dict[str, Any]:
        counts = {"processing": 6, "succeeded": 1, "errored": 1, "canceled": 0, "expired": 0}
        state = "canceling" if "msgbatch_0" in self.cancelled else "in_progress"
        created = {"created_at": "2026-01-02T03:04:05Z"}
        return {"data": [{"id": "msgbatch_0", "processing_status": state, "request_counts": counts, **created}]}

    async def cancel(self, name: str) -> dict[str, Any]:
        self.cancelled.append(name)
        return {}

    async def chat(self, request: Request) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            yield ": a comment\r\n\r\n"
            for piece in self.pieces:
                yield f"data: {json.dumps({'choices': [{'delta': {'content': piece}, 'finish_reason': None}]})}\r\n\r\n"
                await asyncio.sleep(self.pause)
            yield 'data: {"choices":[{"delta":{},"finish_reason":"length"}]}\n\n'
            yield 'data: {"choices":[],"usage":{"completion_tokens":7}}\n\ndata: [DONE]\n\n'

        return StreamingResponse(events(), media_type="text/event-stream")


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    server.start()
    yield server
    server.stop()


def test_markup_stays_text_wherever_it_comes_from(scripted: Scripted, page: Any) -> None:
    page.show(scripted.url)
    page.until_text("#state", "Live")
    page.until("return document.querySelectorAll('#batches tbody tr').length === 5")
    page.find("#message").send_keys(MARKUP, "\n")
    page.until("return document.querySelector('article.assistant .text + p').textContent")
    assert page.text("article.user .text") == page.text("article.assistant .text") == MARKUP
    facts = page.text("article.assistant .text + p")
    assert re.fullmatch(r"cut off at the token limit · 7 tokens · first after [\d.]+ m?s( · .+ tokens/s)?", facts)
    assert page.text("#model") == MARKUP
    assert page.run("return document.querySelectorAll('b, img:not(h1 img)').length") == 0
    assert page.driver.title == "pybatch"
    with pytest.raises(Exception, match="TrustedHTML"):  # what a careless script would do is refused by the policy
        page.run("document.querySelector('#model').innerHTML = '<b>bold</b>'")


def test_figures_are_shown_with_their_units(scripted: Scripted, page: Any) -> None:
    page.show(scripted.url)
    page.until_text("#state", "Live")
    shown = [card.text.splitlines() for card in page.driver.find_elements("css selector", ".charts figcaption")]
    assert [(lines[0], lines[-2:]) for lines in shown] == [
        ("Batch", ["12", "of 64 sequences"]),
        ("KV cache", ["25 %", "512 of 2,048 blocks"]),
        ("Queue", ["3", "requests wait"]),
        ("Tokens per second", ["123", "output, 1,000 prompt"]),
        ("Time to first token", ["125 ms", "p99 1.5 s"]),
        ("Time per output token", [NOTHING, f"p99 {NOTHING}"]),
    ]
    words = page.find(".charts figure:nth-child(5) svg").get_attribute("aria-label")
    assert words == ("Time to first token over the last 5 minutes. Now: p50 125 ms, p99 1.5 s. Highest: 1.5 s.")
    names = [each.text for each in page.driver.find_elements("css selector", ".meters dt")]
    values = [each.text for each in page.driver.find_elements("css selector", ".meters dd")]
    assert dict(zip(names, values, strict=True)) == {
        "CPU": "50 %",
        "Memory": "8 GiB of 16 GiB",
        f"GPU 0, {MARKUP}": "93 %, 412 W, 61 °C",
        "Memory of GPU 0": "70 GiB of 80 GiB",
        "GPU 1, ?": NOTHING,
        "Memory of GPU 1": f"{NOTHING} of {NOTHING}",
        f"Disk of {MARKUP}": "75 GiB of 100 GiB",
        "This process": "1 GiB, 1.5 cores",
        "Disk": "0 B/s read, 1 KiB/s written",
        "Network": "0 B/s in, 2 KiB/s out",
    }
    cells = [each.text for each in page.driver.find_elements("css selector", "#finished tbody tr:first-child td")]
    assert cells == ["00000000", MARKUP, MARKUP, MARKUP, "1,234", "56", "125 ms", "31.3 ms", "3 s"]
    assert page.text("#finished h2 small") == "the last 12"


def test_a_batch_is_cancelled_after_a_question(scripted: Scripted, page: Any) -> None:
    page.show(scripted.url)
    page.until("return document.querySelectorAll('#batches tbody tr').length === 5")
    row = page.find("#batches tbody tr")
    assert row.text.splitlines()[2:] == ["in progress", "100 of 400, 4 failed 2 h 3 min Cancel"]
    assert page.run("return document.querySelector('#batches progress').position") == 0.25
    assert (
        len([each for each in page.driver.find_elements("css selector", "#batches button") if each.is_displayed()]) == 2
    )
    button = row.find_element("tag name", "button")
    name = f"batch_{MARKUP}0"
    button.click()
    assert page.text("#cancel-name") == name
    page.find("#cancel-dialog button[value=keep]").click()
    assert not page.find("#cancel-dialog").is_displayed()
    assert scripted.cancelled == []
    button.send_keys("\ue007")  # Enter
    page.press("\ue004", "\ue007")  # Tab, to the button that cancels
    page.until("return document.querySelector('#batches .pill').textContent === 'cancelled'")
    assert scripted.cancelled == [name]
    assert not button.is_displayed()
    assert page.run("return document.activeElement.closest('#batches') !== null")  # the focus is not lost

    last = page.find("#batches tbody tr:last-child")
    shown = last.text.partition("/v1/messages\n")[2]
    assert re.fullmatch(r"in progress\n2 of 8, 1 failed \d+ d (\d+ h )?Cancel", shown)
    last.find_element("tag name", "button").click()
    page.find("#cancel-dialog button.main").click()
    page.until("return document.querySelector('#batches tr:last-child .pill').textContent === 'canceling'")
    assert scripted.cancelled == [name, "msgbatch_0"]


def test_an_answer_can_be_stopped_and_the_conversation_goes_on(scripted: Scripted, page: Any) -> None:
    scripted.pieces, scripted.pause = [f"{i} " for i in range(1000)], 0.02
    page.show(scripted.url)
    page.until_text("#state", "Live")
    page.find("#message").send_keys("Count", "\ue008\ue007\ue000", "please", "\ue007")  # Shift and Enter: a new line
    page.until("return document.querySelector('article.assistant .text').textContent.length > 20")
    assert page.text("article.user .text") == "Count\nplease"
    assert page.find("#messages").get_attribute("aria-busy") == "true"
    page.find("#message").send_keys("\ue00c")  # Escape
    page.until("return document.querySelector('#messages').getAttribute('aria-busy') === 'false'")
    assert page.text("article.assistant .text + p").startswith("stopped · first after ")
    scripted.pieces, scripted.pause = ["again"], 0
    page.find("#message").send_keys("More", "\ue007")
    page.until("return document.querySelectorAll('article').length === 4")
    page.until_text("article:last-child .text", "again")
    page.find("#new-chat").click()
    assert page.driver.find_elements("tag name", "article") == []


def test_the_page_says_that_the_server_is_away_and_goes_on_when_it_is_back(scripted: Scripted, page: Any) -> None:
    page.show(scripted.url)
    page.until_text("#state", "Live")
    scripted.stop()
    page.until_text("#state", "No answer")
    assert "The server does not answer" in page.text("#notice")
    page.find("#message").send_keys("Hello", "\ue007")
    page.until("return document.querySelector('article .wrong')?.textContent")
    assert page.find("#message").get_attribute("value") == "Hello"  # to be sent again
    scripted.start()
    page.until_text("#state", "Live")
    assert not page.find("#notice").is_displayed()
    page.find("#message").send_keys("\ue007")
    page.until("return document.querySelector('article:last-child .text').textContent.length > 20")


def test_a_page_that_nobody_sees_asks_nothing(scripted: Scripted, page: Any) -> None:
    page.show(scripted.url)
    page.until_text("#state", "Live")
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    time.sleep(0.5)  # for what is on its way
    before = len(scripted.asked)
    time.sleep(2.5)
    assert len(scripted.asked) == before
    page.driver.close()
    page.driver.switch_to.window(first)
    page.until("return !document.hidden")
    time.sleep(1.5)
    assert len(scripted.asked) > before


def test_a_key_is_asked_for_and_sent_in_no_url(scripted: Scripted, page: Any) -> None:
    scripted.key = KEY
    page.show(scripted.url)
    page.until("return document.querySelector('#key-dialog').open")
    assert page.text("#state") == "Key needed"
    assert not page.find("#key-error").is_displayed()
    page.press("wrong", "\ue007")
    page.until("return !document.querySelector('#key-error').hidden")
    assert "does not take this key" in page.text("#key-error")
    page.press("\ue00c")  # Escape does not close it
    page.press(KEY, "\ue007")
    page.until_text("#state", "Live")
    assert not page.find("#key-dialog").is_displayed()
    page.until("return document.querySelectorAll('#batches tbody tr').length === 5")
    page.find("#message").send_keys("Hello", "\ue007")
    page.until("return document.querySelector('article.assistant .text').textContent")
    assert not any(KEY in path for path in scripted.asked)
    assert page.run("return [location.href, document.cookie, localStorage.length]") == [scripted.url, "", 0]
    page.driver.refresh()
    page.until_text("#state", "Live")  # it is kept while the tab is open
    page.find("#forget-key").click()
    page.until("return document.querySelector('#key-dialog').open")
    assert page.run("return sessionStorage.length") == 0


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 768, 1440])
def test_no_rule_of_accessibility_is_broken_and_nothing_sticks_out(
    scripted: Scripted, page: Any, width: int, dark: bool
) -> None:
    page.show(scripted.url, width=width, height=800, dark=dark)
    page.until_text("#state", "Live")
    page.until("return document.querySelectorAll('#batches tbody tr').length === 5")
    page.find("#message").send_keys("Hello", "\ue007")
    page.until("return document.querySelector('article.assistant .text + p')?.textContent")
    page.find("#message").send_keys("More")
    assert page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert violations(page) == []
    page.screenshot(f"{width}-{'dark' if dark else 'light'}")
    page.find("#batches tbody button").click()
    assert violations(page) == []
    page.find("#cancel-dialog button[value=keep]").click()


def violations(page: Any) -> list[str]:
    """Of axe-core's rules, with the elements."""
    found = Axe().run(page.driver)["violations"]
    return [f"{each['id']}: {node['html']}: {node['failureSummary']}" for each in found for node in each["nodes"]]


def test_numbers_that_change_move_nothing(scripted: Scripted, page: Any) -> None:
    page.show(scripted.url)
    page.until_text("#state", "Live")
    page.until("return document.querySelectorAll('#batches tbody tr').length === 5")
    page.run(
        "window.shifts = []; new PerformanceObserver(list => window.shifts.push(...list.getEntries()))"
        ".observe({type: 'layout-shift'})"
    )
    asked = len(scripted.asked)
    page.until("return performance.now() > arguments[0]", page.run("return performance.now()") + 3500)
    assert len(scripted.asked) > asked + 3
    assert page.run("return window.shifts.map(shift => shift.value)") == []
