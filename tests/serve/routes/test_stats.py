"""The server at a glance."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from live_server import Server

SECRET = "a secret between the two of us"


def chat(server: Server, request_id: str, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 6, **fields}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, headers={"x-request-id": request_id})


def points(shown: dict[str, Any]) -> list[dict[str, Any]]:
    series = shown["series"]
    return [dict(zip(series, values, strict=True)) for values in zip(*series.values(), strict=True)]


def test_a_request_is_shown_with_its_counts_and_without_its_text(server: Server) -> None:
    begin = time.time()
    usage = chat(server, "shown-1").json()["usage"]
    time.sleep(2.1)
    response = httpx.get(f"{server.url}/stats")
    assert SECRET not in response.text
    shown = response.json()
    request = next(each for each in shown["requests"]["finished"] if each["id"] == "shown-1")
    assert (request["route"], request["state"], request["status"]) == ("/v1/chat/completions", "finished", 200)
    assert (request["prompt_tokens"], request["output_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert request["finish_reasons"] == ["length"]
    assert 0 < request["ttft"] < request["seconds"]
    since = [point for point in points(shown) if point["time"] > begin]
    seconds = shown["interval"]
    assert round(sum(point["output_tokens"] for point in since) * seconds) >= 6
    assert any(point["ttft_p99"] and point["tpot_p50"] and point["batch"] for point in since)
    assert all(0 <= point["kv_usage"] <= 1 and point["process_memory"] > 1e6 for point in since)
    assert shown["server"]["kv_blocks"] == 256


def test_the_series_go_on_where_the_client_has_them(server: Server) -> None:
    newest = httpx.get(f"{server.url}/stats").json()["now"]
    time.sleep(1.2)
    shown = httpx.get(f"{server.url}/stats", params={"since": newest}).json()
    assert 1 <= len(points(shown)) <= 3
    times: list[float] = []
    with httpx.stream("GET", f"{server.url}/stats/stream", params={"since": newest}) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                times += json.loads(line[6:])["series"]["time"]
            if len(times) > 2:
                break
    assert times == sorted(set(times))
    assert times[0] > newest


def test_the_id_of_a_request_comes_back(server: Server) -> None:
    assert chat(server, "mine-1").headers["x-request-id"] == "mine-1"
    made = {chat(server, given).headers["x-request-id"] for given in ("", "a b", "x" * 200)}
    assert len(made) == 3
    assert all(each.startswith("req_") and len(each) == 36 for each in made)


def test_a_client_that_has_gone_is_shown_so(server: Server) -> None:
    body = {"model": "tiny", "prompt": "x", "max_tokens": 500, "n": 8, "stream": True, "ignore_eos": True}
    headers = {"x-request-id": "gone-1"}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, headers=headers) as response:
        lines = response.iter_lines()
        next(lines)
        running = httpx.get(f"{server.url}/stats").json()["requests"]["running"]
        assert [each["state"] for each in running if each["id"] == "gone-1"] == ["running"]
    for _ in range(100):
        finished = httpx.get(f"{server.url}/stats").json()["requests"]["finished"]
        if found := [each["state"] for each in finished if each["id"] == "gone-1"]:
            break
        time.sleep(0.05)
    assert found == ["gone"]


def test_a_whole_answer_shows_how_far_it_has_come(server: Server) -> None:
    body = {"model": "tiny", "prompt": ["x", "y"], "max_tokens": 500, "n": 8, "ignore_eos": True}
    seen: list[tuple[str, int]] = []
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(httpx.post, f"{server.url}/v1/completions", json=body, timeout=60)
        while not asked.done():
            running = httpx.get(f"{server.url}/stats").json()["requests"]["running"]
            seen += [(each["state"], each["output_tokens"]) for each in running if each["prompts"] == 2]
    assert asked.result().json()["usage"]["completion_tokens"] == 8000
    assert any(state == "running" and 0 < tokens < 8000 for state, tokens in seen)
