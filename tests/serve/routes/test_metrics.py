"""/metrics: vLLM's names and types, and counts that are exact."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from live_server import Server
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

GAUGES = {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}
COUNTERS = {
    *("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens", "prompt_tokens_cached"),
    *("generation_tokens", "request_success", "request_targets"),
    *("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
    "spec_decode_num_accepted_tokens_per_pos",
}
HISTOGRAMS = {
    *("iteration_tokens_total", "time_to_first_token_seconds", "inter_token_latency_seconds"),
    *("request_time_per_output_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds"),
    *("request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds"),
    *("request_prompt_tokens", "request_generation_tokens", "request_params_max_tokens", "request_params_n"),
}
TYPES = {
    **dict.fromkeys(GAUGES, "gauge"),
    **dict.fromkeys(COUNTERS, "counter"),
    **dict.fromkeys(HISTOGRAMS, "histogram"),
}

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped(server: Server) -> Samples:
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name.removeprefix("pybatch:"), frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Mapping[Any, float], name: str, **labels: str) -> float:
    return sum(value for (of, has), value in samples.items() if of == name and labels.items() <= dict(has).items())


def complete(server: Server, **fields: Any) -> Any:
    body = {"model": "tiny", "prompt": [1, 2, 3], "temperature": 0, "ignore_eos": True, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body).json()


@pytest.mark.parametrize(
    ("accept", "parse"),
    [
        ("", text_string_to_metric_families),
        ("text/plain;version=0.0.4", text_string_to_metric_families),
        ("application/openmetrics-text; version=1.0.0", openmetrics_families),
        ("application/openmetrics-text;version=1.0.0;escaping=underscores;q=0.5,text/plain", openmetrics_families),
    ],
)
def test_names_types_and_labels_are_vllm_s(server: Server, accept: str, parse: Any) -> None:
    response = httpx.get(f"{server.url}/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith(accept.partition(";")[0] or "text/plain; version=0.0.4")
    families = {family.name: family for family in parse(response.text)}
    for name, kind in TYPES.items():
        family = families[f"pybatch:{name}"]
        assert family.type == kind, name
        assert family.samples, name
        for sample in family.samples:
            assert sample.labels["model_name"] == "tiny"
    assert {s.labels["finished_reason"] for s in families["pybatch:request_success"].samples} == {
        *("stop", "length", "abort", "error")
    }
    assert all(name.startswith("pybatch:") for name in families)


def test_counts_move_by_what_was_asked(server: Server) -> None:
    prompt = [255, *range(1, 40)]  # begins as no other test's
    before = scraped(server)
    answers = [
        complete(server, prompt=prompt, max_tokens=5),
        complete(server, prompt=prompt, max_tokens=7),  # all of its prompt but the last token is cached
        complete(server, prompt=[254] * 10, max_tokens=3, n=2),
    ]
    first = answers[2]["choices"][0]
    after = scraped(server)

    def moved(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    usages = [answer["usage"] for answer in answers]
    assert moved("prompt_tokens_total") == sum(usage["prompt_tokens"] for usage in usages) == 90
    assert moved("generation_tokens_total") == sum(usage["completion_tokens"] for usage in usages) == 18
    assert moved("prompt_tokens_cached_total") == moved("prefix_cache_hits_total") == 39
    assert moved("prefix_cache_queries_total") == 90
    assert moved("request_success_total", finished_reason="length") == moved("request_success_total") == 3
    assert first["finish_reason"] == "length"
    for name in HISTOGRAMS - {"iteration_tokens_total", "inter_token_latency_seconds"}:
        assert moved(f"{name}_count") == moved(f"{name}_bucket", le="+Inf") == 3, name
    assert moved("inter_token_latency_seconds_count") == 18 - 4
    assert moved("iteration_tokens_total_count") == moved("engine_steps_total")
    assert moved("request_prompt_tokens_sum") == 90
    assert moved("request_prompt_tokens_bucket", le="10.0") == 1
    assert moved("request_prompt_tokens_bucket", le="20.0") == 1
    assert moved("request_prompt_tokens_bucket", le="50.0") == 3
    assert moved("request_params_max_tokens_sum") == 15
    assert moved("request_params_n_sum") == 4
    assert moved("http_requests_total", route="/v1/completions", status="200", method="POST") == 3
    assert moved("http_request_seconds_count", route="/v1/completions") == 3
    assert moved("http_time_to_first_token_seconds_count") == 3
    assert moved("http_requests_total", route="/metrics") == 1
    assert total(after, "http_requests_in_flight") == 1  # the one that reads it
    assert total(after, "num_requests_running") == total(after, "kv_cache_usage_perc") == 0


def test_a_client_that_goes_and_what_is_refused_are_counted(server: Server) -> None:
    before = scraped(server)
    body = {"model": "tiny", "prompt": [5], "max_tokens": 500, "n": 8, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        during = scraped(server)
        assert total(during, "num_requests_running") + total(during, "num_requests_waiting") >= 8
        assert total(during, "kv_cache_usage_perc") > 0
        assert total(during, "requests_open", kind="interactive") == 1
    assert httpx.get(f"{server.url}/nowhere/{time.time()}").status_code == 404
    assert httpx.request("NOWHERE", f"{server.url}/v1/models").status_code == 405
    assert "error" in complete(server, max_tokens=0)
    for _ in range(200):
        after = scraped(server)
        gone = total(after, "request_success_total", finished_reason="abort")
        if gone > total(before, "request_success_total", finished_reason="abort"):
            break
        time.sleep(0.02)
    assert gone - total(before, "request_success_total", finished_reason="abort") == 1

    def moved(name: str, **labels: str) -> float:
        return total(after, name, **labels) - total(before, name, **labels)

    assert moved("http_requests_total", route="none", status="404") == 1
    assert moved("http_requests_total", status="400") == 1
    assert moved("http_requests_total", method="other", route="/v1/models") == 1
    assert "nowhere" not in json.dumps([sorted(labels) for _, labels in after]).lower()


def test_a_scrape_is_cheap_and_the_machine_is_in_it(server: Server) -> None:
    took = []
    for _ in range(5):
        begin = time.perf_counter()
        samples = scraped(server)
        took.append(time.perf_counter() - begin)
    assert min(took) < 0.5
    for name in (
        "machine_memory_available_bytes",
        "process_memory_bytes",
        "process_cpu_seconds_total",
        "disk_free_bytes",
    ):
        assert total(samples, name) > 0, name
    assert len(samples) < 2000


def test_targets_are_counted_by_whether_they_were_met(server: Server) -> None:
    before = scraped(server)
    complete(server, max_tokens=3, ttft_target=600, tpot_target=0)
    complete(server, max_tokens=1, ttft_target=0, tpot_target=600)  # without a later token
    complete(server, max_tokens=3)
    after = scraped(server)
    for target, met, count in (("ttft", "true", 1), ("ttft", "false", 1), ("tpot", "true", 0), ("tpot", "false", 1)):
        labels = {"target": target, "met": met}
        assert (
            total(after, "request_targets_total", **labels) - total(before, "request_targets_total", **labels) == count
        )
