"""The page on a real server."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import requested
from live_server import Server, serving

TAB, ENTER, SHIFT = "\ue004", "\ue007", "\ue008"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 40}


def test_it_shows_what_the_server_tells(server: Server, page: Any) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, headers={"x-request-id": "0123abcd-of-a-test"})
    page.show(f"{server.url}/")
    page.until_text("#state", "Live")
    page.until("return document.querySelectorAll('#finished tbody tr').length")
    stats = httpx.get(f"{server.url}/stats").json()
    assert page.text("#model") == "tiny"
    assert page.text("#about").startswith(f"pybatch {stats['server']['version']}, on cpu, up for ")
    more = [each.text for each in page.driver.find_elements("css selector", ".charts .more")]
    assert more[0] == f"of {stats['server']['max_num_seqs']} sequences"
    assert more[1].endswith(f" of {stats['server']['kv_blocks']} blocks")
    (told,) = [each for each in stats["requests"]["finished"] if each["id"] == "0123abcd-of-a-test"]
    usage = answer.json()["usage"]
    rows = page.driver.find_elements("css selector", "#finished tbody tr")
    (row,) = [row for row in rows if row.text.startswith("0123abcd")]
    cells = [each.text for each in row.find_elements("tag name", "td")]
    assert cells[:3] == ["0123abcd", "/v1/chat/completions", "\u2013"]
    assert cells[3:6] == [told["finish_reasons"][0], str(usage["prompt_tokens"]), str(usage["completion_tokens"])]
    assert milliseconds(cells[6]) == pytest.approx(1e3 * told["ttft"], rel=0.01)
    assert milliseconds(cells[7]) == pytest.approx(1e3 * told["tpot"], rel=0.01)
    page.until("return document.querySelectorAll('.charts path.line').length >= 5")  # two points are a line

    assert page.console() == []
    urls = requested(page.driver)
    assert {f"{server.url}/", f"{server.url}/v1/models"} < urls
    assert all(url.startswith(f"{server.url}/") for url in urls)
    page.screenshot("live")


def milliseconds(text: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+) (µs|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"µs": 1e-3, "ms": 1, "s": 1e3}[unit]


def test_a_chat_needs_a_keyboard_alone(server: Server, page: Any) -> None:
    page.show(f"{server.url}/")
    page.until_text("#state", "Live")
    page.press(TAB)
    assert page.run("return document.activeElement.className") == "skip"
    page.press(ENTER)
    assert page.run("return document.activeElement.id") == "message"
    page.press(TAB)
    assert page.run("return document.activeElement.id") == "chat-model"
    page.press(TAB, "40", TAB, "0")  # a field that Tab comes to is selected, and written over
    with_shift(page, TAB, TAB, TAB)
    page.press("Hello", ENTER)
    page.until("return document.querySelector('#messages').getAttribute('aria-busy') === 'false'")
    expected = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).json()
    shown = page.run("return document.querySelector('article.assistant .text').textContent")
    assert shown == expected["choices"][0]["message"]["content"]
    tokens = expected["usage"]["completion_tokens"]
    assert f" {tokens} tokens · first after " in f" {page.text('article.assistant .text + p')}"
    assert page.run("return document.querySelector('#told').textContent") == f"tiny: {shown}"
    assert page.run("return document.activeElement.id") == "message"
    assert page.console() == []


def with_shift(page: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(page.driver).key_down(SHIFT).send_keys(*keys).key_up(SHIFT).perform()


def test_a_batch_is_seen_with_its_progress_and_cancelled(server: Server, page: Any) -> None:
    rows = []
    for i in range(5000):
        body = {**CHAT, "messages": [{"role": "user", "content": f"Hello {i}"}], "ignore_eos": True}
        rows.append({"custom_id": f"<b>{i}</b>", "method": "POST", "url": "/v1/chat/completions", "body": body})
    with httpx.Client(base_url=server.url) as client:
        content = "".join(json.dumps(row) + "\n" for row in rows)
        file = client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("rows.jsonl", content)}).json()
        asked = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        batch = client.post("/v1/batches", json=asked).json()
        page.show(f"{server.url}/")
        rows_shown = "[...document.querySelectorAll('#batches tbody tr')]"
        name = f"return {rows_shown}.find(row => row.textContent.includes('{batch['id']}'))"
        page.until(f"{name}?.querySelector('progress').value > 0")
        row = page.run(name)
        shown = row.find_element("css selector", ".progress .soft").text
        done = int(re.fullmatch(r"([\d,]+) of 5,000", shown).group(1).replace(",", ""))  # type: ignore[union-attr]
        counts = client.get(f"/v1/batches/{batch['id']}").json()["request_counts"]
        assert 0 < done <= counts["completed"] < counts["total"] == 5000
        page.screenshot("live-batch")
        row.find_element("tag name", "button").click()
        page.find("#cancel-dialog button.main").click()
        page.until(f"{name}.querySelector('.pill').textContent === 'cancelled'")
        assert client.get(f"/v1/batches/{batch['id']}").json()["status"] == "cancelled"
    assert page.console() == []


def test_an_error_of_the_server_is_told(server: Server, page: Any) -> None:
    page.show(f"{server.url}/")
    page.until_text("#state", "Live")
    page.find("#message").send_keys("a" * 600, ENTER)
    page.until("return document.querySelector('article .wrong')?.textContent.includes('max_model_len = 512')")


def test_a_server_with_a_key_is_used_with_it(tiny_model: Path, page: Any) -> None:
    with serving(tiny_model, "--served-model-name", "tiny", "--api-key", "secret") as server:
        assert httpx.get(f"{server.url}/stats").status_code == 401
        page.show(f"{server.url}/")
        page.until("return document.querySelector('#key-dialog').open")
        page.press("secret", ENTER)
        page.until_text("#state", "Live")
        assert page.text("#model") == "tiny"
        page.find("#message").send_keys("Hello", ENTER)
        page.until("return document.querySelector('article.assistant .text').textContent")
