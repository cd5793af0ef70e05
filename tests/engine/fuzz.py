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
from engine.grammars import SharedGrammars
from engine.runs import run, some_prompt
from tiny_model import save_tiny_model

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.kv_policies import HeavyHitters, KvPolicy, SnapKV, StreamingLLM
from pybatch.engine.outputs import CompletionOutput
from pybatch.engine.scheduling.pruning import make_pruning
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.model import load_model
from pybatch.model.loader import LoadedModel

PRECISIONS = [(None, "auto"), ("int8", "auto"), ("int8", "int8"), ("int8", "int4"), ("int8-weight-only", "float16")]
POLICIES: dict[int, KvPolicy] = {  # by a request's index modulo 7; outputs are longer than a block
    2: StreamingLLM(sinks=4, window=9),
    4: SnapKV(budget=7, observed=4, pooling=3),
    5: HeavyHitters(heavy=5, recent=4),
}
CONSTRAINTS = {3: {"regex": "(ab|c)+[0-9]"}, 6: {"json": {"enum": ["one", 2, None]}}}  # by a request's index modulo 8
REQUESTS, LONGEST = 48, 12  # tokens of output
BLOCK = 8


@dataclass
class Alone:
    """Requests and what each of them gives by itself, its prompt in one piece, nothing cached."""

    model: LoadedModel
    grammars: SharedGrammars
    kv_cache_dtype: str
    prompts: list[list[int]]
    params: list[SamplingParams]
    samples: list[list[CompletionOutput]]

    def engine(self, config: EngineConfig) -> Engine:
        """Its draft model, if it is to have one, is the model itself, whose drafts are often right."""
        return self.grammars.given_to(Engine(self.model.decoder, self.model.tokenizer, config, self.model.decoder))


def alone(model: Path, quantization: str | None, kv_cache_dtype: str) -> Alone:
    loaded = load_model(model, quantization=quantization)
    grammars = SharedGrammars(loaded)
    shared = some_prompt(3 * BLOCK + 5, vocab=250)
    prompts = [(shared if i % 3 == 0 else []) + some_prompt(1 + 7 * i % 60, i, vocab=250) for i in range(REQUESTS)]
    params = [
        SamplingParams(
            n=3 if i % 5 == 1 else 1,
            temperature=0.0 if i % 4 == 0 and i % 5 != 1 else 0.9,
            top_p=0.9 if i % 4 == 1 else 1.0,
            frequency_penalty=0.3 if i % 5 == 0 else 0.0,
            max_tokens=LONGEST,
            ignore_eos=True,
            logprobs=1,
            seed=i,
            kv_policy=POLICIES.get(i % 7),
            structured_outputs=CONSTRAINTS.get(i % 8),  # type: ignore[arg-type]
            detokenize=False,
        )
        for i in range(REQUESTS)
    ]
    config = EngineConfig(
        num_kv_blocks=64, block_size=BLOCK, enable_prefix_caching=False, kv_cache_dtype=kv_cache_dtype
    )
    engine = grammars.given_to(Engine(loaded.decoder, loaded.tokenizer, config))
    samples = [run(engine, [prompt], each)[0].outputs for prompt, each in zip(prompts, params, strict=True)]
    return Alone(loaded, grammars, kv_cache_dtype, prompts, params, samples)


def least_blocks(reference: Alone, chosen: list[int], lengths: list[int]) -> int:
    """The smallest pool that each of the requests fits, with so many tokens of output."""
    least = 0
    for i, n in zip(chosen, lengths, strict=True):
        prompt, policy = len(reference.prompts[i]), reference.params[i].kv_policy
        least = max(least, -(-(prompt + n) // BLOCK))
        if policy is not None:
            assert not isinstance(policy, dict)
            least = max(least, make_pruning(policy, prompt, BLOCK).peak_tokens // BLOCK)
    return least


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
            engine.add_request(
                str(place),
                reference.prompts[i],
                params,
                standing=Standing(
                    priority=draw.choice((-2, 0, 1, BACKGROUND)),
                    ttft_target=draw.choice((None, 0.0, 0.05, 1.0)),
                    tpot_target=draw.choice((None, 0.0, 0.003, 0.02, 1.0)),
                ),
            )
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
    settings: dict[str, Any] = {
        "policy": draw.choice(("continuous", "continuous", "static", "static(by_length=False)", "dynamic", "micro")),
        "predict_lengths": draw.choice((True, False)),
        "swap_space": draw.choice((0.0, 0.001)),
        "max_num_seqs": draw.choice((1, 2, 7, 64)),
        "max_num_batched_tokens": draw.choice((3, 16, 64, 512, 4096)),
        "num_kv_blocks": least_blocks(reference, chosen, lengths) + draw.choice((0, 1, 8, 600)),
        "enable_prefix_caching": draw.random() < 0.7,
        "speculative_config": _random_speculation(draw),
    }
    torch.set_num_threads(threads)
    config = EngineConfig(block_size=BLOCK, kv_cache_dtype=reference.kv_cache_dtype, **settings)
    return reference.engine(config), f"{len(chosen)} requests, {threads} threads, {settings}"


def _random_speculation(draw: random.Random) -> dict[str, Any] | None:
    methods = ({"prompt_lookup_min": 1}, {"method": "suffix"}, {"model": "given", "num_speculative_tokens": 3})
    method = draw.choice((None, None, *methods))
    return method and {**method, "adaptive": draw.random() < 0.5}


def _check(reference: Alone, i: int, length: int, output: RequestOutput, description: str) -> None:
    assert output.error is None, f"{description}: {output.error}"
    for found, alone in zip(output.outputs, reference.samples[i], strict=True):
        assert found.logprobs is not None
        assert alone.logprobs is not None
        assert found.token_ids == alone.token_ids[:length], f"{description}: other tokens"
        assert found.logprobs == alone.logprobs[:length], f"{description}: other log-probabilities"


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
