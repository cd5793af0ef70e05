"""Random batches, each request of which must have the bits it has alone.

``python -m engine.fuzz COUNT [SEED]`` in tests/ runs COUNT of each kind, and stops at the first that differs.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from engine.runs import run, some_prompt
from tiny_model import save_tiny_model

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.kv_policies import StreamingLLM
from pybatch.engine.scheduling.sequence import BACKGROUND
from pybatch.model import Decoder, load_model

PRECISIONS = [(None, "auto"), ("int8", "auto"), ("int8", "int8"), ("int8", "int4"), ("int8-weight-only", "float16")]
STREAMING = StreamingLLM(sinks=4, window=9)  # which fits the smallest of the pools below
REQUESTS, LONGEST = 48, 12  # tokens of output
BLOCK = 8


@dataclass
class Alone:
    """Requests and what each of them gives by itself, its prompt in one piece, nothing cached."""

    decoder: Decoder
    kv_cache_dtype: str
    prompts: list[list[int]]
    params: list[SamplingParams]
    tokens: list[list[int]]
    logprobs: list[list[Any]]


def alone(model: Path, quantization: str | None, kv_cache_dtype: str) -> Alone:
    decoder = load_model(model, quantization=quantization, skip_tokenizer=True).decoder
    shared = some_prompt(3 * BLOCK + 5, vocab=250)
    prompts = [(shared if i % 3 == 0 else []) + some_prompt(1 + 7 * i % 60, i, vocab=250) for i in range(REQUESTS)]
    params = [
        SamplingParams(
            temperature=0.0 if i % 4 == 0 else 0.9,
            top_p=0.9 if i % 4 == 1 else 1.0,
            frequency_penalty=0.3 if i % 5 == 0 else 0.0,
            max_tokens=LONGEST,
            ignore_eos=True,
            logprobs=1,
            seed=i,
            kv_policy=STREAMING if i % 6 == 2 else None,
        )
        for i in range(REQUESTS)
    ]
    config = EngineConfig(
        num_kv_blocks=64, block_size=BLOCK, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype
    )
    engine = Engine(decoder, None, config)
    found = [run(engine, [prompt], each)[0] for prompt, each in zip(prompts, params, strict=True)]
    tokens, logprobs = zip(*(_bits(output) for output in found), strict=True)
    return Alone(decoder, kv_cache_dtype, prompts, params, list(tokens), list(logprobs))


def check_random_batch(reference: Alone, seed: int) -> str:
    """Runs some of the requests together, in an engine of random settings. Returns these; AssertionError with them, if
    a bit differs."""
    draw = random.Random(seed)
    chosen = [draw.randrange(REQUESTS) for _ in range(draw.choice((1, 2, 3, 7, 16, 33, 64)))]  # some more than once
    lengths = [draw.randint(1, LONGEST) for _ in chosen]
    engine, description = _random_engine(reference, draw, chosen, lengths)
    description = f"seed {seed}: {description}"
    params = [replace(reference.params[i], max_tokens=n) for i, n in zip(chosen, lengths, strict=True)]
    outputs = run(engine, [reference.prompts[i] for i in chosen], params)
    for i, n, output in zip(chosen, lengths, outputs, strict=True):
        _check(reference, i, n, output, description)
    engine.check_integrity()
    return description


def check_random_arrivals(reference: Alone, seed: int) -> int:
    """The same for requests of several priorities that come in the course of the steps, and of which some are aborted.
    Returns how often one was preempted."""
    draw = random.Random(seed)
    chosen = [draw.randrange(REQUESTS) for _ in range(draw.choice((7, 16, 33)))]
    lengths = [draw.randint(1, LONGEST) for _ in chosen]
    engine, description = _random_engine(reference, draw, chosen, lengths)
    description = f"arrivals, seed {seed}: {description}"
    coming = list(enumerate(zip(chosen, lengths, strict=True)))
    aborted: set[str] = set()
    outputs: dict[str, RequestOutput] = {}
    while coming or engine.has_unfinished():
        for _ in range(min(len(coming), draw.choice((0, 0, 1, 4)))):
            place, (i, n) = coming.pop()
            params = replace(reference.params[i], max_tokens=n)
            engine.add_request(str(place), reference.prompts[i], params, priority=draw.choice((-2, 0, 1, BACKGROUND)))
        if draw.random() < 0.05:
            aborted.add(name := str(draw.randrange(len(chosen))))
            engine.abort(name)
        outputs.update((output.request_id, output) for output in engine.step())
        engine.check_integrity()
    for place, (i, n) in enumerate(zip(chosen, lengths, strict=True)):
        if str(place) in outputs:
            _check(reference, i, n, outputs[str(place)], description)
        else:
            assert str(place) in aborted, f"{description}: {place} has not ended"
    return engine.metrics.preemptions


def _random_engine(reference: Alone, draw: random.Random, chosen: list[int], lengths: list[int]) -> tuple[Engine, str]:
    """Of random settings, with these in words."""
    threads = draw.randint(1, 4)
    longest = max(len(reference.prompts[i]) + n for i, n in zip(chosen, lengths, strict=True))
    settings: dict[str, Any] = {
        "policy": draw.choice(("continuous", "continuous", "static", "static(by_length=False)", "dynamic", "micro")),
        "predict_lengths": draw.choice((True, False)),
        "swap_space": draw.choice((0.0, 0.001)),
        "max_num_seqs": draw.choice((1, 2, 7, 64)),
        "max_num_batched_tokens": draw.choice((3, 16, 64, 512, 4096)),
        "num_kv_blocks": -(-longest // BLOCK) + draw.choice((0, 1, 8, 600)),
        "enable_prefix_caching": draw.random() < 0.7,
        "speculative_config": draw.choice((None, {"prompt_lookup_min": 1, "adaptive": draw.random() < 0.5})),
    }
    torch.set_num_threads(threads)
    config = EngineConfig(block_size=BLOCK, kv_cache_dtype=reference.kv_cache_dtype, **settings)
    return Engine(reference.decoder, None, config), f"{len(chosen)} requests, {threads} threads, {settings}"


def _check(reference: Alone, i: int, length: int, output: RequestOutput, description: str) -> None:
    tokens, logprobs = _bits(output)
    assert tokens == reference.tokens[i][:length], f"{description}: other tokens"
    assert logprobs == reference.logprobs[i][:length], f"{description}: other log-probabilities"


def _bits(output: RequestOutput) -> tuple[list[int], list[Any]]:
    (completion,) = output.outputs
    assert completion.logprobs is not None
    return completion.token_ids, completion.logprobs


def main(count: int, first_seed: int = 0) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = save_tiny_model(Path(folder))
        references = [alone(model, *precision) for precision in PRECISIONS]
    begin = time.monotonic()
    for seed in range(first_seed, first_seed + count):
        reference = references[seed % len(references)]
        check_random_batch(reference, seed)
        check_random_arrivals(reference, seed)
        if (seed + 1) % 500 == 0:
            print(f"{seed + 1 - first_seed} batches, {time.monotonic() - begin:.0f} s, no bit differs", flush=True)
    print(f"{count} batches: no bit differs")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
