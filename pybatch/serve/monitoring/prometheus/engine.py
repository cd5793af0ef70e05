"""The engine's metrics, by vLLM's names and with its types and labels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from pybatch.api.async_llm import AsyncLLM
from pybatch.engine.outputs import FinishReason
from pybatch.serve.monitoring.prometheus.families import (
    LATENCY,
    SAMPLES,
    STEP_TOKENS,
    TOKEN_LATENCY,
    counter,
    gauge,
    histogram,
    lengths,
)

REASONS: tuple[str, ...] = get_args(FinishReason)


class EngineCollector(Collector):
    """name: the model's. Rows of batches are in all of it, as the engine does not tell requests apart."""

    def __init__(self, llm: AsyncLLM, name: str) -> None:
        self.llm = llm
        self.labels = {"model_name": name, "engine": "0"}

    def collect(self) -> Iterator[Metric]:
        yield from self.now()
        yield from self.counters()
        yield from self.latencies()
        yield from self.sizes()

    def now(self) -> Iterator[Metric]:
        engine, labels = self.llm.engine, self.labels
        used = engine.num_kv_blocks_used / engine.num_kv_blocks
        yield gauge("num_requests_running", "Samples in the batch.", [(labels, engine.num_running)])
        waiting = self.llm.thread.num_waiting
        yield gauge("num_requests_waiting", "Requests that wait for a place in the batch.", [(labels, waiting)])
        yield gauge("kv_cache_usage_perc", "The fraction of KV blocks in use, from 0 to 1.", [(labels, used)])
        yield gauge("kv_cache_blocks", "KV blocks of the pool.", [(labels, engine.num_kv_blocks)])
        yield gauge("kv_cache_pinned_blocks", "Those of pinned prefixes.", [(labels, engine.num_kv_blocks_pinned)])

    def counters(self) -> Iterator[Metric]:
        metrics, labels = self.llm.engine.metrics, self.labels
        queries = metrics.prefilled_tokens if self.llm.engine.config.enable_prefix_caching else 0
        for name, help, value in (
            ("prefix_cache_queries", "Tokens of prompts that were looked for in the prefix cache.", queries),
            ("prefix_cache_hits", "Those that were found there.", metrics.prefilled_cached_tokens),
            ("prefix_cache_disk_hits", "Of these, read from prefix_cache_dir.", metrics.prefilled_disk_tokens),
            (
                "num_preemptions",
                "Samples that had to return their KV blocks.",
                metrics.preemptions,
            ),
            ("swapped_out_blocks", "KV blocks of these that were moved to the host.", metrics.swapped_out_blocks),
            ("swapped_in_blocks", "KV blocks that were moved back.", metrics.swapped_in_blocks),
            ("prompt_tokens", "Tokens of prompts whose first token has come.", metrics.prefilled_tokens),
            ("prompt_tokens_cached", "Those that were found in the prefix cache.", metrics.prefilled_cached_tokens),
            ("generation_tokens", "Generated tokens.", metrics.output_tokens),
            ("spec_decode_num_drafts", "Drafts that were verified, one for a sample and step.", metrics.drafts.drafts),
            ("spec_decode_num_draft_tokens", "Their tokens.", metrics.drafts.tokens),
            ("spec_decode_num_accepted_tokens", "Those that proved right.", metrics.drafts.accepted_tokens),
            ("engine_steps", "Steps of the engine.", metrics.steps),
            ("engine_step_sequences", "Sequences in all steps: by steps, the mean batch.", metrics.step_sequences),
        ):
            yield counter(name, help, [(labels, value)])
        seconds = {"schedule": metrics.schedule_time, "run": metrics.run_time, "sample": metrics.sample_time}
        yield counter(
            "engine_step_seconds",
            "Time in steps, by part.",
            [({**labels, "part": part}, s) for part, s in seconds.items()],
        )
        yield counter(
            "spec_decode_num_accepted_tokens_per_pos",
            "Tokens of drafts that proved right, by their place in the draft.",
            [
                ({**labels, "position": str(position)}, count)
                for position, count in enumerate(metrics.drafts.accepted_by_position or [0])
            ],
        )
        yield counter(
            "request_targets",
            "Requests with a target for the first token (ttft) or for later ones (tpot), by whether they met it.",
            [
                ({**labels, "target": target, "met": str(met).lower()}, metrics.targets[target, met])
                for target in ("ttft", "tpot")
                for met in (True, False)
            ],
        )
        yield counter(
            "request_success",
            "Requests that have ended, by why.",
            [({**labels, "finished_reason": reason}, metrics.finish_reasons[reason]) for reason in REASONS],
        )

    def latencies(self) -> Iterator[Metric]:
        metrics = self.llm.engine.metrics
        for name, help, edges, numbers in (
            ("time_to_first_token_seconds", "From a request's arrival to its first token.", LATENCY, metrics.ttft),
            ("inter_token_latency_seconds", "Between two tokens of a sample.", TOKEN_LATENCY, metrics.inter_token),
            (
                "request_time_per_output_token_seconds",
                "A request's mean time for a token after the first.",
                TOKEN_LATENCY,
                metrics.tpot,
            ),
            ("e2e_request_latency_seconds", "From a request's arrival to its end.", LATENCY, metrics.e2e),
            ("request_queue_time_seconds", "From arrival to the first step with it.", LATENCY, metrics.queue_time),
            ("request_prefill_time_seconds", "From there to the first token.", LATENCY, metrics.prefill_time),
            ("request_decode_time_seconds", "From the first token to the end.", LATENCY, metrics.decode_time),
            ("request_inference_time_seconds", "From the first step to the end.", LATENCY, metrics.inference_time),
        ):
            yield histogram(name, help, edges, [(self.labels, numbers)])

    def sizes(self) -> Iterator[Metric]:
        metrics, edges = self.llm.engine.metrics, lengths(self.llm.engine.max_model_len)
        for name, help, bounds, numbers in (
            ("iteration_tokens_total", "Tokens in a step.", STEP_TOKENS, metrics.step_size),
            ("request_prompt_tokens", "Tokens of a request's prompt.", edges, metrics.prompt_length),
            ("request_generation_tokens", "Tokens of a request's samples.", edges, metrics.output_length),
            ("request_params_max_tokens", "What a request asked for, or what fits.", edges, metrics.max_tokens),
            ("request_params_n", "Samples that a request asked for.", SAMPLES, metrics.samples),
        ):
            yield histogram(name, help, bounds, [(self.labels, numbers)])
