"""What KV types and pruning cost in quality, beside what they save in memory and time.

    python bench/quality.py [--quick] [--model smollm2-135m] [--context TOKENS ...] [--mode NAME ...] [--json PATH]

With --json it goes on where an earlier run stopped, mode by mode; --seconds has it begin no other after so long.

A context is a stretch of Python's own documentation (pydoc_data.topics) in which three facts are hidden, at 10%, 50%
and 90% of it. Each mode computes it as a prompt and then goes on from it, the same way for all: the engine decodes
token by token, and Forced takes the place of its sampler, so that the tokens that follow are the given ones; what is
scored is the log-probability that the engine gives them.

perplexity: of the context itself, which is computed with full attention in any case, so that policies are left out;
    and of the text that follows, CONTINUATION tokens. The first of these does not count: it comes from the prompt's own
    logits, before anything is pruned.
needles: each fact is asked for behind the context. Found are those whose digits are all the likeliest tokens; the
    log-probability is the mean of a digit's. The prompt ends before the answer's first word, so that every digit is
    read from the cache as the mode has it.
KV bytes a token, and the memory of the blocks in use at the text's end; CPU time of a decoded token, the median, of one
    sequence alone in one thread (other programs change it less than wall-clock time, but do change it).

Modes share a context's keys and values in the prefix cache where they have a type in common, as requests would.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pybatch
from pybatch import HeavyHitters, SamplingParams, SnapKV, StreamingLLM
from pybatch.engine import Engine, EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.engine.execution.sampler import Drawn, Sampler, Samples
from pybatch.engine.kv_policies import KvPolicy
from pybatch.engine.scheduling.sequence import Sequence

CONTEXTS = (2000, 4000, 7600)  # with what follows at most 8192, the context of SmolLM2
CONTINUATION = 256
DEPTHS = (0.1, 0.5, 0.9)
PLACES = ("archive", "harbour", "observatory")
DIGITS = 4
KEPT = 512  # tokens that pruned caches keep
POLICIES: dict[str, KvPolicy | None] = {
    "": None,
    "StreamingLLM": StreamingLLM(sinks=4, window=KEPT),
    "SnapKV": SnapKV(budget=KEPT - 32, observed=32),
    "SnapKV pooling=7": SnapKV(budget=KEPT - 32, observed=32, pooling=7),
    "HeavyHitters": HeavyHitters(heavy=KEPT // 2, recent=KEPT // 2),
}
MODES = (
    ["float32", "bfloat16", "float16", "int8", "int4"]
    + [f"float32 {name}" for name in POLICIES if name]
    + ["int8 StreamingLLM", "int8 SnapKV"]
)


class Forced(Sampler):
    """Samples the given tokens, whatever the logits are, with the log-probabilities that the logits give them."""

    output: list[int]

    def sample(self, logits: Tensor, sequences: list[Sequence], drafts: list[tuple[int, ...]] | None = None) -> Drawn:
        assert not drafts
        tokens = [self.output[sequence.num_output] for sequence in sequences]
        drawn = torch.tensor(tokens)
        entries = self.logprobs(logits, drawn, [0] * len(tokens))
        return Drawn(drawn, lambda: Samples(tokens, [*entries()], {}))


@dataclass
class Context:
    """prompt: with the facts in it. following: what the text goes on with. questions: behind the prompt, each with its
    answer, of which the last DIGITS tokens count."""

    prompt: list[int]
    following: list[int]
    questions: list[tuple[list[int], list[int]]]


@dataclass
class Scores:
    """Over the samples of a mode at one length."""

    kv_bytes_per_token: int
    blocks: int = 0
    kv_mib: float = 0.0
    prompt_logprobs: list[float] = field(default_factory=list)
    text_logprobs: list[float] = field(default_factory=list)
    digits: list[list[tuple[float, int]]] = field(default_factory=list)
    """Of each question its digits' log-probabilities and ranks."""
    token_cpu_s: list[float] = field(default_factory=list)

    @property
    def prompt_perplexity(self) -> float | None:
        return perplexity(self.prompt_logprobs) if self.prompt_logprobs else None

    @property
    def perplexity(self) -> float:
        return perplexity(self.text_logprobs)

    @property
    def found(self) -> int:
        return sum(all(rank == 1 for _, rank in digits) for digits in self.digits)

    @property
    def digit_logprob(self) -> float:
        return statistics.fmean(logprob for digits in self.digits for logprob, _ in digits)

    @property
    def cpu_ms(self) -> float:
        return 1e3 * statistics.median(self.token_cpu_s)


def perplexity(logprobs: list[float]) -> float:
    return math.exp(-statistics.fmean(logprobs))


def contexts(llm: pybatch.LLM, length: int, samples: int) -> list[Context]:
    """length: of the prompts, in tokens."""
    encode = llm.get_tokenizer().encode
    text = encode("\n\n".join(topics[name] for name in sorted(topics)))
    made = []
    for sample in range(samples):
        rng = random.Random(sample)
        codes = ["".join(rng.choices("0123456789", k=DIGITS)) for _ in PLACES]
        told = [f"The access code of the {place} is {code}" for place, code in zip(PLACES, codes, strict=True)]
        facts = [encode(f"\n\n{fact}.\n\n") for fact in told]
        filler = length - sum(map(len, facts))
        begin = sample * (len(text) - filler - CONTINUATION) // max(samples - 1, 1)
        here = text[begin : begin + filler]
        prompt: list[int] = []
        ends = [0, *(round(depth * filler) for depth in DEPTHS), filler]
        for start, end, fact in zip(ends[:-1], ends[1:], [*facts, []], strict=True):
            prompt += here[start:end] + fact
        questions = [
            (encode(f"\n\nThe access code of the {place}"), encode(f" is {code}"))
            for place, code in zip(PLACES, codes, strict=True)
        ]
        made.append(Context(prompt, text[begin + filler : begin + filler + CONTINUATION], questions))
    return made


class Forcer:
    """An engine of a KV type, and the steps that it takes."""

    def __init__(self, llm: pybatch.LLM, kv_type: str, longest: int, at_once: int = 1) -> None:
        """at_once: texts of that length that are to stay in the prefix cache."""
        self.kv_type = kv_type
        decoder = llm.engine.decoder
        config = EngineConfig(
            kv_cache_dtype=kv_type,  # type: ignore[arg-type]
            num_kv_blocks=(1 + at_once) * -(-longest // 16) + 64,
            max_model_len=longest,
        )
        self.block_bytes = kv_layout(decoder, config).block_bytes
        self.kv_bytes_per_token = self.block_bytes // config.block_size
        self._engine = Engine(decoder, None, config)
        self._sampler = Forced(lambda _: None, decoder.config.vocab_size, decoder.device)
        self._engine._computer.sampler = self._sampler
        self._count = 0

    def run(self, prompt: list[int], output: list[int], policy: KvPolicy | None, *, score_prompt: bool = False) -> Run:
        engine = self._engine
        self._sampler.output = output
        extras: dict[str, Any] = {"prompt_logprobs": 0 if score_prompt else None, "kv_policy": policy}
        params = SamplingParams(max_tokens=len(output), ignore_eos=True, logprobs=0, **extras)
        engine.add_request(str(self._count), prompt, params)
        self._count += 1
        run = Run()
        while engine.has_unfinished():
            decoded, begin = engine.metrics.output_tokens, time.process_time()
            outputs = engine.step()
            if engine.metrics.output_tokens > decoded:
                run.token_cpu_s.append(time.process_time() - begin)
            if engine.num_kv_blocks_used:
                run.blocks = engine.num_kv_blocks_used
            for ended in outputs:
                if ended.error is not None:
                    raise SystemExit(ended.error)
                logprobs = ended.outputs[0].logprobs
                assert logprobs is not None
                assert ended.outputs[0].token_ids == output
                if ended.prompt_logprobs is not None:
                    entries = zip(ended.prompt_logprobs, prompt, strict=True)
                    run.prompt_logprobs = [e[t].logprob for e, t in entries if e is not None]
                run.scores = [(e[t].logprob, e[t].rank) for e, t in zip(logprobs, output, strict=True)]
        return run


@dataclass
class Run:
    """blocks: in use before the last token. scores: log-probability and rank of each token of the output. The first of
    token_cpu_s is the prompt's last step, the second may begin with what the prompt's end left to do."""

    blocks: int = 0
    scores: list[tuple[float, int]] = field(default_factory=list)
    prompt_logprobs: list[float] = field(default_factory=list)
    token_cpu_s: list[float] = field(default_factory=list)


def measure(forcer: Forcer, made: list[Context], mode: str) -> Scores:
    scores, policy = Scores(forcer.kv_bytes_per_token), POLICIES[mode.partition(" ")[2]]
    for context in made:
        text = forcer.run(context.prompt, context.following, policy, score_prompt=policy is None)
        scores.prompt_logprobs += text.prompt_logprobs
        scores.text_logprobs += [logprob for logprob, _ in text.scores[1:]]
        scores.token_cpu_s += text.token_cpu_s[2:]
        scores.blocks = max(scores.blocks, text.blocks)
        scores.kv_mib = scores.blocks * forcer.block_bytes / 2**20
        for question, answer in context.questions:
            asked = forcer.run(context.prompt + question, answer, policy)
            scores.digits.append(asked.scores[-DIGITS:])
    return scores


def compared(value: float | None, base: float | None) -> tuple[str, str]:
    if value is None:
        return "", ""
    return f"{value:.3f}", "" if base is None else f"{value / base - 1:+.2%}"


COLUMNS = (
    *("context ppl", "change", "text ppl", "change", "needles", "digit logprob"),
    *("KV B/token", "blocks", "KV MiB", "CPU ms/token"),
)


def show(length: int, results: dict[str, dict[str, Any]], console: Console) -> None:
    table = Table(title=f"{length} tokens of context")
    table.add_column("mode")
    for name in COLUMNS:
        table.add_column(name, justify="right")
    base = next(iter(results.values()))
    for mode, scores in results.items():
        table.add_row(
            mode,
            *compared(scores["prompt_perplexity"], base["prompt_perplexity"]),
            *compared(scores["perplexity"], base["perplexity"]),
            f"{scores['found']}/{len(scores['digits'])}",
            f"{scores['digit_logprob']:.2f}",
            f"{scores['kv_bytes_per_token']:,}",
            str(scores["blocks"]),
            f"{scores['kv_mib']:.1f}",
            f"{scores['cpu_ms']:.1f}",
        )
    console.print(table)


def summary(scores: Scores) -> dict[str, Any]:
    facts = asdict(scores)
    del facts["token_cpu_s"], facts["text_logprobs"], facts["prompt_logprobs"]
    means = ("prompt_perplexity", "perplexity", "found", "digit_logprob", "cpu_ms")
    return {**{name: getattr(scores, name) for name in means}, "text_tokens": len(scores.text_logprobs), **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--context", type=int, action="append", help=f"repeatable (default: {CONTEXTS})")
    parser.add_argument("--mode", action="append", choices=MODES, help="repeatable (default: all)")
    parser.add_argument("--samples", type=int, default=2, help="stretches of text for each context length")
    parser.add_argument("--quick", action="store_true", help=f"one sample of {CONTEXTS[0]} tokens")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=math.inf)
    args = parser.parse_args()
    lengths = args.context or (CONTEXTS[:1] if args.quick else CONTEXTS)
    samples = 1 if args.quick else args.samples
    modes = args.mode or MODES
    kv_types = list(dict.fromkeys(mode.partition(" ")[0] for mode in modes))

    longest = max(lengths) + 2 * CONTINUATION
    blocks = -(-longest // 16)
    llm = pybatch.LLM(args.model, quantization="int8", num_kv_blocks=blocks, max_model_len=longest, threads=1)
    facts = {
        "date": date.today().isoformat(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "model": args.model,
        "samples": samples,
        "policies": {name: repr(policy) for name, policy in POLICIES.items() if policy},
    }
    results: dict[str, dict[str, Any]] = {}
    if args.json and args.json.exists():
        earlier = json.loads(args.json.read_text())
        differ = [name for name in ("model", "samples", "policies") if earlier.get(name) != facts[name]]
        if differ:
            raise SystemExit(f"{args.json}: expected results of the same {', '.join(differ)}; give another file")
        results = earlier["results"]
    begin, left = time.monotonic(), 0
    for length in lengths:
        found, forcer, made = results.setdefault(str(length), {}), None, contexts(llm, length, samples)
        for mode in sorted(modes, key=lambda mode: kv_types.index(mode.partition(" ")[0])):
            if mode in found:
                continue
            if time.monotonic() - begin > args.seconds:
                left += 1
                continue
            kv_type = mode.partition(" ")[0]
            if forcer is None or forcer.kv_type != kv_type:
                forcer = None  # frees its pool
                forcer = Forcer(llm, kv_type, longest=length + 2 * CONTINUATION, at_once=samples)
            at = time.monotonic()
            scores = summary(measure(forcer, made, mode))
            found[mode] = {**scores, "seconds": round(time.monotonic() - at, 1), "load_average": os.getloadavg()[0]}
            print(
                f"{length} {mode}: {scores['perplexity']:.3f} ({found[mode]['seconds']} s)", file=sys.stderr, flush=True
            )
            if args.json:
                args.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
        in_order = {mode: found[mode] for mode in modes if mode in found}
        if in_order:
            show(length, in_order, Console(width=140))
    if left:
        print(f"{left} modes are left: the same command goes on with them")


if __name__ == "__main__":
    main()
