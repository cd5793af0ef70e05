"""A model whose weights come from memory: the peak of loading, the time of a start, and how much of the machine's
reading speed a step uses.

    python bench/memory_bound.py [--shape llama-3.2-1b] [--precision int8 ...] [--models DIRECTORY] [--json PATH]
                                 [--rounds 3] [--draft]

Models are random (bench/random_model.py) and made in DIRECTORY unless they are there. For each precision one process
after another loads the model: without a weights cache, with an empty one, and from it. The last one, and the first,
then decode 1 and 8 sequences. peak: VmHWM, all resident memory, pages of files included; anonymous: the most of it that
the system cannot simply drop; both less what was resident when pybatch had been imported, and without KV, which is
allocated later. start: from the call to the loaded model, tokenizer included, without imports; the page cache is warm.
share: bytes of weights and KV that a step has to read, times steps a second, by the read ceiling that is measured
before and after, on the same threads. Steps a second are of the difference between two lengths of output.

--draft adds speculative decoding of one sequence: with the model as the draft of itself, which shows what drafts cost,
and with ngram. A random model with tied embeddings repeats its last token, so every draft is right: of what checking
several tokens in one pass over the weights gains, that is the most, not what text gains.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PRECISIONS = ["int8", "int8-weight-only", "Q4_0", "Q8_0", "bf16", "fp32"]
TYPES = {"bf16": "bfloat16", "fp32": "float32"}
PROMPT, SHORT, LONG = 16, 8, 72  # tokens
CONTEXT = 1024


def resident() -> dict[str, int]:
    """Bytes, by kind."""
    status = Path("/proc/self/status").read_text()
    return {name: int(size) << 10 for name, size in re.findall(r"^(VmHWM|VmRSS|RssAnon):\s+(\d+) kB", status, re.M)}


@contextmanager
def peaks() -> Iterator[dict[str, int]]:
    """What memory grew by at most, inside."""
    before, found, ended = resident(), {"anonymous": 0}, threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            found["anonymous"] = max(found["anonymous"], resident()["RssAnon"] - before["RssAnon"])

    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()
        found["peak"] = resident()["VmHWM"] - before["VmRSS"]


def work(model: str, precision: str, cache: str | None, rounds: int, draft: bool) -> dict:
    import torch  # noqa: F401  (pybatch's libraries want it there)

    import pybatch
    from pybatch import _C, ops
    from pybatch.engine.execution.kv_cache import kv_layout
    from pybatch.model import load_model
    from pybatch.model.tensors import tensors_of

    arguments = {
        "dtype": TYPES.get(precision, "auto"),
        "quantization": None if precision in TYPES else "gguf" if model.endswith(".gguf") else precision,
        "max_model_len": CONTEXT,
        "weights_cache_dir": cache,
    }
    with peaks() as memory:
        began = time.perf_counter()
        loaded = load_model(model, progress=False, **arguments)
        start = time.perf_counter() - began
    result = {**memory, "start": start, "weights": loaded.decoder.weight_bytes(), "decode": {}, "isa": ops.ISA}
    if not rounds:
        return result
    decoder = loaded.decoder
    embedding = 0 if decoder.config.tie_word_embeddings else sum(t.nbytes for t in tensors_of(decoder.embedding))
    read = decoder.weight_bytes() - embedding
    del loaded, decoder

    def speed(llm: pybatch.LLM, sequences: int) -> dict:
        engine = llm.engine
        layout = kv_layout(engine.decoder, engine.config)
        kv = layout.block_bytes / layout.block_size * (PROMPT + (SHORT + LONG) / 2)
        steps, ceilings = [], []
        for _ in range(rounds):
            ceilings.append(_C.measure_ceiling("read_bytes", 0.3))
            seconds = []
            for length in (SHORT, LONG):
                params = pybatch.SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
                prompts = [
                    {"prompt_token_ids": [(7 * i + j) % 200 + 5 for j in range(PROMPT)]} for i in range(sequences)
                ]
                began = time.perf_counter()
                llm.generate(prompts, params, use_tqdm=False)
                seconds.append(time.perf_counter() - began)
            steps.append((seconds[1] - seconds[0]) / (LONG - SHORT))
        ceilings.append(_C.measure_ceiling("read_bytes", 0.3))
        step, ceiling = statistics.median(steps), statistics.median(ceilings)
        size = read + kv * sequences
        return {
            "tokens_per_s": sequences / step,
            "bytes": size,
            "rate": size / step,
            "ceiling": ceiling,
            "share": size / step / ceiling,
            "steps": steps,
            "ceilings": ceilings,
        }

    def engine_with(speculation: dict | None) -> pybatch.LLM:
        return pybatch.LLM(
            model, enable_prefix_caching=False, num_kv_blocks=256, speculative_config=speculation, **arguments
        )

    llm = engine_with(None)
    result["decode"] = {sequences: speed(llm, sequences) for sequences in (1, 8)}
    if draft:
        own = engine_with({"method": "draft_model", "model": model, "num_speculative_tokens": 4})
        result["draft"] = speed(own, 1)["tokens_per_s"]
        ngram = engine_with({"method": "ngram", "num_speculative_tokens": 4})
        result["ngram"] = speed(ngram, 1)["tokens_per_s"]
    return result


def make(shape: str, precision: str, folder: Path) -> Path:
    """The model that a precision is loaded from."""
    name = shape.split("-")[0] + "-" + shape.rsplit("-", 1)[-1]  # llama-1b
    file = precision.startswith("Q")
    path = folder / (f"{name}-{precision.lower()}.gguf" if file else f"{name}-hf")
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{path.name}")
        script = Path(__file__).with_name("random_model.py")
        kind = ["--type", precision] if file else []
        subprocess.run([sys.executable, str(script), shape, str(unfinished), *kind], check=True)
        unfinished.rename(path)
    return path


def run(*arguments: object) -> dict:
    """work() in a process of its own."""
    command = [sys.executable, __file__, "--work", json.dumps(arguments)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(shape: str, precision: str, models: Path, rounds: int, draft: bool) -> dict:
    model = str(make(shape, precision, models))
    with tempfile.TemporaryDirectory(dir=models, prefix="weights-cache-") as cache:
        return {
            "precision": precision,
            "plain": run(model, precision, None, rounds, draft),
            "first": run(model, precision, cache, 0, False),
            "second": run(model, precision, cache, rounds, False),
        }


def show(results: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="loading: what memory grew by, MB, and seconds; the weights cache empty, then full")
    for column in (
        "precision",
        "weights",
        "peak",
        "anonymous",
        "start",
        "first: peak",
        "start",
        "second: anon.",
        "start",
    ):
        table.add_column(column, justify="right")
    for r in results:
        plain, first, second = r["plain"], r["first"], r["second"]
        table.add_row(
            r["precision"],
            *(f"{plain[name] / 1e6:,.0f}" for name in ("weights", "peak", "anonymous")),
            f"{plain['start']:.1f}",
            f"{first['peak'] / 1e6:,.0f}",
            f"{first['start']:.1f}",
            f"{second['anonymous'] / 1e6:,.0f}",
            f"{second['start']:.2f}",
        )
    console = Console(width=140)
    console.print(table)
    table = Table(title="decoding: tokens/s, GB/s of the read ceiling")
    for column in ("precision", "weights", "sequences", "tokens/s", "GB/s", "ceiling", "share"):
        table.add_column(column, justify="right")
    for r in results:
        for kind, name in (("plain", "in memory"), ("second", "mapped")):
            for sequences, d in r[kind]["decode"].items():
                rates = (f"{d[x] / 1e9:.1f}" for x in ("rate", "ceiling"))
                row = (r["precision"], name, sequences, f"{d['tokens_per_s']:.1f}", *rates, f"{d['share']:.0%}")
                table.add_row(*row)
        for kind, name in (("draft", "its own draft"), ("ngram", "drafts by ngram")):
            if kind in r["plain"]:
                table.add_row(r["precision"], name, "1", f"{r['plain'][kind]:.1f}", "", "", "")
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3.2-1b", help="as random_model.py has them")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="repeatable (default: all)")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--draft", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        print(json.dumps(work(*json.loads(args.work))))
        return
    results = []
    for precision in args.precision or PRECISIONS:
        results.append(measure(args.shape, precision, args.models, args.rounds, args.draft))
        show(results)
    if args.json:
        from pybatch.machine.facts import facts

        command = " ".join(sys.argv)
        report = {"date": time.strftime("%Y-%m-%d"), "load": os.getloadavg(), "command": command, "machine": facts()}
        args.json.write_text(json.dumps({**report, "shape": args.shape, "results": results}, indent=1))


if __name__ == "__main__":
    main()
