"""One engine in a process of its own: reads a JSON line of requests, answers with seconds and tokens.

Run by bench/throughput.py, in the environment where the engine is installed.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from pathlib import Path


def memory_mib(name: str) -> float:
    """VmHWM, the peak of resident memory, or RssAnon, what of it is now not a mapped file's, which is shared."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def used_avx512(seconds: float) -> bool | None:
    """Whether a thread was switched away from with AVX-512 registers in use, these last seconds; None: nobody knows."""
    found = [Path(f"/proc/self/task/{thread}/arch_status") for thread in os.listdir("/proc/self/task")]
    if not found[0].exists():
        return None
    since = [int(status.read_text().split("AVX512_elapsed_ms:")[1]) for status in found]
    return any(0 <= ms < 1000 * seconds for ms in since)


def main() -> None:
    engine, model, precision, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    t = time.perf_counter()
    running = importlib.import_module(engine).Engine(model, precision, int(threads))
    load_s = time.perf_counter() - t

    def answer(**fields: object) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    answer(version=running.version, uses=getattr(running, "uses", None), load_s=load_s)
    for line in sys.stdin:
        requests = json.loads(line)
        t = time.perf_counter()
        outputs = running.generate(requests)
        seconds = time.perf_counter() - t
        memory = {"peak_rss_mib": memory_mib("VmHWM"), "anon_rss_mib": memory_mib("RssAnon")}
        answer(seconds=seconds, outputs=outputs, used_avx512=used_avx512(seconds), **memory)


if __name__ == "__main__":
    main()
