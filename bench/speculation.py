"""Speculative decoding: acceptance, speed and bit-equality by batch size, on tasks that copy and on free text.

    python bench/speculation.py [--quantization int8] [--batches 1,2,4,8,16,32,64] [--methods ngram,suffix] [--rounds 3]
                                [--minutes 8] [--draft-model MODEL] [--draft-quantization int8] [--agreement]
                                [--json PATH] [--png PATH]

Each batch runs on an engine without drafts and then on one for each method, again and again; a method's gain is the
median over the rounds of its tokens a second over those without drafts, so that what else the machine does hits both.
Times are of decoding, once all prompts have been read. CPU gain: the same of the process's CPU time, which other
programs change less: on a busy machine the one to go by. equal: every token and log-probability is the same as without
drafts. Once --minutes are over the batches that are left have one round each.

--agreement compares how often a token of the draft model is right by the way in which it is drawn: the likeliest; in a
race with the large model's variates, as pybatch does (Daliri, Musco and Suresh 2024); and, at best, with min(1, p/q)
(Leviathan et al. 2023). Without --draft-model it is of the model in int8 as the draft of itself in float32.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from pybatch import LLM, SamplingParams
from pybatch.engine.outputs import RequestOutput

FUNCTIONS = {
    "read": "def read(path):\n    with open(path) as file:\n        rows = [line.split(',') for line in file]\n"
    "    header, *body = rows\n    return [dict(zip(header, row)) for row in body]\n",
    "total": "def total(rows, key):\n    return sum(float(row[key]) for row in rows)\n",
    "mean": "def mean(rows, key):\n    return total(rows, key) / len(rows)\n",
    "largest": "def largest(rows, key):\n    best = rows[0]\n    for row in rows[1:]:\n"
    "        if float(row[key]) > float(best[key]):\n            best = row\n    return best\n",
    "write": "def write(rows, path):\n    with open(path, 'w') as file:\n"
    "        file.write(','.join(rows[0]) + '\\n')\n        for row in rows:\n"
    "            file.write(','.join(row.values()) + '\\n')\n",
    "group": "def group(rows, key):\n    groups = {}\n    for row in rows:\n"
    "        groups.setdefault(row[key], []).append(row)\n    return groups\n",
}
SUBJECTS = ("the sea", "a clock", "rain", "bread", "the moon", "a train", "an old dog", "winter", "a market", "iron")


def copying(index: int) -> str:
    """A code edit: most of the answer stands in the prompt."""
    names = list(FUNCTIONS)
    first = index % len(names)
    chosen = [names[(first + i) % len(names)] for i in range(2 + index % 3)]
    code = "\n\n".join(FUNCTIONS[name] for name in chosen)
    return (
        f"Repeat this Python file with `{chosen[0]}` renamed to `{chosen[0]}_it`, and everything else as it is:\n\n"
        f"```python\n{code}```"
    )


def writing(index: int) -> str:
    subject = SUBJECTS[index % len(SUBJECTS)]
    return f"Write a short story, number {index // len(SUBJECTS) + 1} of several, about {subject}."


TASKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "copy": (copying, {"temperature": 0.0}),
    "free": (writing, {"temperature": 0.0}),
    "free, drawn": (writing, {"temperature": 0.8, "seed": 1}),
}


@dataclass
class Result:
    task: str
    batch: int
    method: str
    gain: float  # tokens a second, of those without drafts; over the rounds the median
    cpu_gain: float  # the same by CPU time
    tokens_per_second: float  # the best round's
    plain_tokens_per_second: float
    accepted: float  # of all draft tokens
    tokens_per_step: float  # of a sequence
    equal: bool


@dataclass
class Run:
    seconds: float
    cpu_seconds: float
    tokens: int
    drafts: int
    accepted: int
    steps: int  # summed over the sequences
    bits: Any


def run(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> Run:
    """One batch. Prompts are read before the clock runs, the first time: then they are in the prefix cache."""
    engine = llm.engine
    for number, prompt in enumerate(prompts):
        engine.add_request(str(number), prompt, params, index=number)
    outputs: dict[str, RequestOutput] = {}

    def step() -> None:
        outputs.update((output.request_id, output) for output in engine.step())

    def produced() -> int:
        unfinished = [engine.metrics_of(str(number)) for number in range(len(prompts))]
        ended = sum(len(output.outputs[0].token_ids) for output in outputs.values())
        return ended + sum(each.num_output_tokens for each in unfinished if each is not None)

    while engine.num_waiting or any(
        (each := engine.metrics_of(str(number))) is not None and each.num_output_tokens == 0
        for number in range(len(prompts))
    ):
        step()
    before, drafts, accepted, sequences = produced(), *counts(llm)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    while engine.has_unfinished():
        step()
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    tokens = produced() - before
    drafts_after, accepted_after, sequences_after = counts(llm)
    bits = [(o.outputs[0].token_ids, o.outputs[0].logprobs) for _, o in sorted(outputs.items())]
    return Run(
        seconds,
        cpu_seconds,
        tokens,
        drafts_after - drafts,
        accepted_after - accepted,
        sequences_after - sequences,
        bits,
    )


def counts(llm: LLM) -> tuple[int, int, int]:
    metrics = llm.engine.metrics
    return metrics.drafts.tokens, metrics.drafts.accepted_tokens, metrics.step_sequences


def rate(run: Run) -> float:
    """Tokens a second. The first steps with drafts, while other prompts are read, have brought tokens that another
    engine has yet to bring: so rates are compared, not times."""
    return run.tokens / run.seconds


def cpu_rate(run: Run) -> float:
    return run.tokens / run.cpu_seconds


def compare(llms: dict[str, LLM], task: str, batch: int, *, rounds: int, max_tokens: int, until: float) -> list[Result]:
    """llms: by method; the one without drafts is "off". until: by perf_counter(), after which one round will do."""
    make, sampling = TASKS[task]
    tokenizer = llms["off"].get_tokenizer()
    messages = [[{"role": "user", "content": make(i)}] for i in range(batch)]
    prompts = [tokenizer.apply_chat_template(each, add_generation_prompt=True) for each in messages]
    params = SamplingParams(max_tokens=max_tokens, **sampling)
    telling = replace(params, logprobs=0)
    expected = run(llms["off"], prompts, telling).bits
    equal = {name: run(llm, prompts, telling).bits == expected for name, llm in llms.items()}  # and all are warm
    runs: dict[str, list[Run]] = {name: [] for name in llms}
    while not runs["off"] or (len(runs["off"]) < rounds and time.perf_counter() < until):
        for name, llm in llms.items():
            runs[name].append(run(llm, prompts, params))
    plain = runs.pop("off")
    return [
        Result(
            task,
            batch,
            name,
            gain=statistics.median(rate(b) / rate(a) for a, b in zip(plain, these, strict=True)),
            cpu_gain=statistics.median(cpu_rate(b) / cpu_rate(a) for a, b in zip(plain, these, strict=True)),
            tokens_per_second=max(map(rate, these)),
            plain_tokens_per_second=max(map(rate, plain)),
            accepted=sum(each.accepted for each in these) / max(1, sum(each.drafts for each in these)),
            tokens_per_step=sum(each.tokens for each in these) / max(1, sum(each.steps for each in these)),
            equal=equal[name] and all(each.bits == plain[0].bits for each in these),
        )
        for name, these in runs.items()
    ]


def agreement(large: LLM, small: LLM, *, tokens: int, temperature: float) -> dict[str, float]:
    """How likely a draft of the small model is right on the large one's own text, by how it is drawn."""
    prompt = large.get_tokenizer().encode(writing(0))
    params = SamplingParams(temperature=temperature, seed=1, max_tokens=tokens, ignore_eos=True)
    text = prompt + large.generate({"prompt_token_ids": prompt}, params, use_tqdm=False)[0].outputs[0].token_ids
    p, q = (probabilities(llm, text, len(prompt), temperature) for llm in (large, small))
    return {
        "the likeliest": float(p.gather(1, q.argmax(1, keepdim=True)).mean()),
        "in a common race": statistics.mean(map(same_winner, p, q)),
        "min(1, p/q)": float(torch.minimum(p, q).sum(1).mean()),
    }


def same_winner(p: torch.Tensor, q: torch.Tensor) -> float:
    """How likely the same token has the least variate / p and the least variate / q."""
    both = (p > 0) & (q > 0)
    either = torch.maximum(p[None] / p[both][:, None], q[None] / q[both][:, None])
    return float((1 / either.sum(1)).sum())


def probabilities(llm: LLM, text: list[int], begin: int, temperature: float) -> torch.Tensor:
    """[len(text) - begin, vocab] float64, of the tokens from `begin` on; but for the 500 likeliest they are 0."""
    params = SamplingParams(max_tokens=1, prompt_logprobs=500, detokenize=False)
    rows = llm.generate({"prompt_token_ids": text}, params, use_tqdm=False)[0].prompt_logprobs
    assert rows is not None
    logprobs = torch.full((len(text) - begin, llm.engine.decoder.config.vocab_size), -torch.inf, dtype=torch.float64)
    for row, entry in zip(logprobs, rows[begin:], strict=True):
        assert entry is not None
        row[list(entry)] = torch.tensor([each.logprob for each in entry.values()], dtype=torch.float64)
    return (logprobs / temperature).softmax(1)


def plot(results: list[Result], path: Path) -> None:
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(result.task for result in results))
    figure = Figure(figsize=(4 * len(tasks), 3.5), layout="constrained")
    for place, (axes, task) in enumerate(
        zip(figure.subplots(1, len(tasks), sharey=True, squeeze=False)[0], tasks, strict=True)
    ):
        for method in dict.fromkeys(result.method for result in results):
            these = [result for result in results if (result.task, result.method) == (task, method)]
            axes.plot([r.batch for r in these], [r.gain for r in these], marker="o", label=method)
        axes.axhline(1, color="grey", linewidth=0.8)
        axes.set(xscale="log", title=task, xlabel="sequences")
        axes.set_xticks([r.batch for r in these], [str(r.batch) for r in these])
        if not place:
            axes.set_ylabel("times as fast as without drafts")
            axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--quantization")
    parser.add_argument("--batches", default="1,2,4,8,16,32,64")
    parser.add_argument("--methods", default="ngram,suffix")
    parser.add_argument("--tasks", default=",".join(TASKS).replace(", ", "+"), help="copy,free,free+drawn")
    parser.add_argument("--draft-model")
    parser.add_argument("--draft-quantization")
    parser.add_argument("--most", type=int, default=8, help="drafts of a sequence in a step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--agreement", action="store_true", help="of the draft model, by how its tokens are drawn")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    until = time.perf_counter() + 60 * args.minutes

    common = {"quantization": args.quantization, "max_num_seqs": 64, "max_model_len": 1024, "memory_utilization": 0.1}
    configs: dict[str, Any] = {"off": None}
    configs |= {name: {"method": name} for name in args.methods.split(",") if name}
    if args.draft_model:
        configs["draft model"] = {"model": args.draft_model, "quantization": args.draft_quantization}
    for config in filter(None, configs.values()):
        config["num_speculative_tokens"] = args.most
    llms = {name: LLM(args.model, speculative_config=config, **common) for name, config in configs.items()}
    agreements = {}
    if args.agreement:
        large = LLM(args.model, **{**common, "quantization": args.quantization if args.draft_model else None})
        quantization = args.draft_quantization if args.draft_model else "int8"
        small = LLM(args.draft_model or args.model, **{**common, "quantization": quantization})
        agreements = {t: agreement(large, small, tokens=64, temperature=t) for t in (0.5, 1.0)}
        del large, small

    results: list[Result] = []
    for task in _tasks(args.tasks):
        for batch in map(int, args.batches.split(",")):
            results += compare(llms, task, batch, rounds=args.rounds, max_tokens=args.max_tokens, until=until)
    table = Table(title=f"{args.model}, {args.quantization or 'not quantised'}: decoding with drafts")
    for name in (
        "task",
        "sequences",
        "method",
        "gain",
        "CPU gain",
        "tokens/s",
        "without",
        "accepted",
        "tokens a step",
        "equal",
    ):
        table.add_column(name, justify="left" if name in ("task", "method") else "right")
    for r in results:
        rates = f"{r.tokens_per_second:.0f}", f"{r.plain_tokens_per_second:.0f}"
        shares = f"{r.accepted:.0%}", f"{r.tokens_per_step:.2f}"
        table.add_row(
            r.task,
            str(r.batch),
            r.method,
            f"{r.gain:.2f}",
            f"{r.cpu_gain:.2f}",
            *rates,
            *shares,
            "yes" if r.equal else "NO",
        )
    Console(width=120).print(table)
    for temperature, shares in agreements.items():
        print(f"temperature {temperature}:", ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    if args.json:
        facts = {"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(args)}
        facts = {name: value for name, value in facts.items() if name not in ("json", "png")}
        data = {"settings": {k: str(v) for k, v in facts.items()}, "results": [asdict(r) for r in results]}
        args.json.write_text(json.dumps({**data, "agreement": agreements}, indent=1))
    if args.png:
        plot(results, args.png)


def _tasks(text: str) -> list[str]:
    return [name.replace("+", ", ") for name in text.split(",")]


if __name__ == "__main__":
    main()
