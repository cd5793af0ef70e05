"""Writes the figures of docs/figures.md, and those that README.md shows, from the runs kept in bench/results/: run it
after adding one.

    python bench/figures.py [--check]

Each run of bench/throughput.py is a table, since speeds compare within a run only; of bench/neighbours.py, the newest
run; of GPUs, each folder that bench/gpu.sh left, the newest first. README.md shows, of the newest runs against other
engines with all instruction sets, how many times as fast pybatch is. --check writes nothing and fails if a file is not
what it would be.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
SMOLLM2 = "SmolLM2-135M-Instruct"
CASES = {
    "decode1": "1 sequence",
    "decode8": "8",
    "decode32": "32",
    "decode64": "64",
    "mixed64": "64 mixed",
    "prefill1x512": "prefill 512",
    "prefill8x128": "8 x 128",
    "prefill16x256": "16 x 256",
}
NAMES = {
    "pybatch:int8": "pybatch int8",
    "pybatch:gguf": "pybatch gguf",
    "pybatch:bf16": "pybatch bf16",
    "pybatch:fp32": "pybatch fp32",
    "llamacpp:q8_0": "llama.cpp Q8_0",
    "llamacpp:q4_0": "llama.cpp Q4_0",
    "ik_llamacpp:q4_0": "ik_llama.cpp Q4_0",
    "openvino:int8": "OpenVINO GenAI int8",
    "openvino:fp32": "OpenVINO GenAI fp32",
    "ctranslate2:int8_float32": "CTranslate2 int8",
    "ctranslate2:fp32": "CTranslate2 fp32",
    "vllm:fp32": "vLLM fp32",
    "transformers:fp32": "transformers fp32",
}
INSTRUCTIONS = {"amx": "AVX-512 and AMX", "avx512": "AVX-512", "avx2": "AVX2 alone"}
OTHERS = {
    "llamacpp": "llama.cpp",
    "ik_llamacpp": "ik_llama.cpp",
    "openvino": "OpenVINO GenAI",
    "ctranslate2": "CTranslate2",
    "vllm": "vLLM",
    "transformers": "transformers",
}


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def machine(run: dict) -> str:
    return f"{run['threads']} cores of {run['cpu'].replace('(R)', '').removesuffix(' Processor')}"


def instructions(run: dict) -> str:
    """What pybatch ran by; the EPYC's runs, which do not say it, by AVX-512. Others have what they can of the same."""
    return INSTRUCTIONS[run["engines"]["pybatch:int8"].get("uses", "avx512")]


def throughput_table(run: dict) -> str:
    """What was run where, then engines by cases, the fastest of a case in bold, and pybatch's lead if known."""
    results = run["results"]
    cases = [case for case in CASES if any(case in entries for entries in results.values())]
    rates = {label: {case: entry["tokens_per_s"] for case, entry in of.items()} for label, of in results.items()}
    best = {case: max(of[case] for of in rates.values()) for case in cases}
    lines = [f"{run.get('model', SMOLLM2)}, {instructions(run)}, {machine(run)}, {run['date']}:", ""]
    lines.append(row([f"{run['rounds']} rounds", *(CASES[case] for case in cases), "peak memory"]))
    lines.append(row(["---"] * (len(cases) + 2)))
    for label in NAMES:
        if label in results:
            cells = [
                f"**{rates[label][c]:.0f}**" if rates[label][c] == best[c] else f"{rates[label][c]:.0f}" for c in cases
            ]
            peak = max(entry["peak_rss_mib"] for entry in results[label].values()) / 1024
            lines.append(row([NAMES[label], *cells, f"{peak:.2f} GiB"]))
    for other, ratios in run.get("ratios", {}).get("best", {}).items():
        leads = [f"{r['median']:.2f} ({r['least']:.2f}-{r['greatest']:.2f})" for r in (ratios[c] for c in cases)]
        lines.append(row([f"times {OTHERS[other]}", *leads, ""]))
    return "\n".join(lines)


def cpu_runs() -> list[dict]:
    """The newest first; of a day, the small model first and all instruction sets before AVX2."""
    runs = [json.loads(path.read_text()) for path in RESULTS.glob("*-cpu-throughput*.json")]
    runs.sort(key=lambda run: (run.get("instructions") == "AVX2", -run["rounds"], run["command"]))
    runs.sort(key=lambda run: (run["date"], run.get("model", SMOLLM2) == SMOLLM2), reverse=True)
    return runs


def cpu_tables() -> str:
    return "\n\n".join(throughput_table(run) for run in cpu_runs())


def headline() -> str:
    """Of each model's newest run against others with all instruction sets: pybatch's best speed in each case, and how
    many times that of each other engine it is."""
    newest: dict[str, dict] = {}
    for run in cpu_runs():
        if "ratios" in run and run.get("instructions") != "AVX2":
            newest.setdefault(run.get("model", SMOLLM2), run)
    return "\n\n".join(headline_table(model, run) for model, run in newest.items())


def headline_table(model: str, run: dict) -> str:
    ours = {NAMES[label]: entries for label, entries in run["results"].items() if label.startswith("pybatch:")}
    best = run["ratios"]["best"]
    cases = [case for case in CASES if all(case in ratios for ratios in best.values())]
    speeds = [max((entries[case]["tokens_per_s"], name) for name, entries in ours.items()) for case in cases]
    lines = [f"{model}, {instructions(run)}, {machine(run)}, {run['date']}:", ""]
    lines += [row(["", *(CASES[case] for case in cases)]), row(["---"] * (len(cases) + 1))]
    lines.append(row(["tokens/s", *(f"{speed:.0f} ({name.split()[1]})" for speed, name in speeds)]))
    for other, ratios in best.items():
        lines.append(row([f"times {OTHERS[other]}", *(f"{ratios[case]['median']:.2f}" for case in cases)]))
    return "\n".join(lines)


def neighbours_table() -> str:
    """Engines by cases and surroundings, each with its share of the quiet figure, of the newest run."""
    runs = sorted(RESULTS.glob("*-cpu-neighbours.json"))
    if not runs:
        return "No run has been made yet."
    run = json.loads(runs[-1].read_text())
    rates = run["tokens_per_s"]
    columns = [(case, name) for case, names in next(iter(rates.values())).items() for name in names]
    titles = [f"{CASES[case]}, {name}" if name == "quiet" else name for case, name in columns]
    lines = [f"{SMOLLM2}, {machine(run)}, {run['date']}:", ""]
    lines += [row([f"{run['rounds']} rounds", *titles]), row(["---"] * (len(columns) + 1))]
    for label in NAMES:
        if label in rates:
            cells = []
            for case, name in columns:
                rate, quiet = (statistics.median(rates[label][case][each]) for each in (name, "quiet"))
                cells.append(f"{rate:.0f}" if name == "quiet" else f"{rate:.0f} ({rate / quiet:.2f})")
            lines.append(row([NAMES[label], *cells]))
    return "\n".join(lines)


PRODUCT = re.compile(r"(w8a16|float8|w8a8|dense|gguf Q4_K) (\d+) x (\d+ x \d+)")


def gpu_figures() -> str:
    """A table or three a run, the newest first: each run measured what was new then."""
    runs = sorted(RESULTS.glob("gpu-*/kernels.json"), key=lambda path: json.loads(path.read_text())["date"])
    return "\n\n".join("\n".join(gpu_tables(path)) for path in reversed(runs))


def gpu_tables(path: Path) -> list[str]:
    run = json.loads(path.read_text())
    kernels = [result for result in run["results"] if "failed" not in result]
    products = [kernel for kernel in kernels if PRODUCT.fullmatch(kernel["name"])]
    lines = [f"{run['chip']}, {run['date'][:10]}, torch {run['torch']}, CUDA {run['cuda']} (`{path.parent.name}`):", ""]
    lines += [row(["kernel", "us", "predicted", "of copy bandwidth", "times as fast as"]), row(["---"] * 5)]
    for kernel in kernels:
        if not kernel["name"].startswith(("w8a", "float8", "dense", "gguf")):
            rivals = (f"{name} {other / kernel['seconds']:.2f}" for name, other in kernel["others"].items())
            share = f"{kernel['of_copy']:.0%}" if kernel["of_copy"] else ""
            # Before predictions were kept: by the measured ceilings alone.
            predicted = kernel.get("predicted", kernel["seconds"] * max(kernel["of_copy"], kernel["of_bf16"]))
            times = (f"{seconds * 1e6:.0f}" for seconds in (kernel["seconds"], predicted))
            lines.append(row([kernel["name"], *times, share, ", ".join(rivals)]))
    if products:
        lines += ["", "Matrix products, times as fast as cuBLAS in bf16:", "", *product_table(products)]
    models = path.with_name("models.json")
    if models.exists():
        lines += ["", "Random models through the whole engine, prompts of 512 tokens:", "", *model_table(models)]
    return lines


def product_table(products: list[dict]) -> list[str]:
    speeds: dict[str, dict[int, float]] = {}
    for product in products:
        kind, rows, shape = PRODUCT.fullmatch(product["name"]).groups()
        ratio = product["others"]["cuBLAS bf16"] / product["seconds"]
        speeds.setdefault(f"{kind}, {shape}", {})[int(rows)] = ratio
    columns = sorted({rows for of_kind in speeds.values() for rows in of_kind})
    lines = [row(["weights, N x K", *(f"{rows} rows" for rows in columns)]), row(["---"] * (len(columns) + 1))]
    for name, of_kind in sorted(speeds.items()):
        lines.append(row([name, *(f"{of_kind[rows]:.2f}" if rows in of_kind else "" for rows in columns)]))
    return lines


def model_table(path: Path) -> list[str]:
    lines = [
        row(["model", "prefill, tokens/s", "decode, tokens/s", "a step, ms", "of it kernels"]),
        row(["---"] * 5),
    ]
    for result in json.loads(path.read_text())["results"]:
        if "error" in result:
            continue
        speeds = (f"{result[f'{phase}_tokens_per_second']:,.0f}" for phase in ("prefill", "decode"))
        step = f"{result['step_seconds'] * 1e3:.2f}", f"{1 / result['step_over_replay']:.0%}"
        lines.append(row([result["name"], *speeds, *step]))
    return lines


FIGURES = {
    "README.md": {"headline": headline},
    "docs/figures.md": {"cpu": cpu_tables, "neighbours": neighbours_table, "gpu": gpu_figures},
}


def with_figures(text: str, figures: dict[str, Callable[[], str]]) -> str:
    for name, figure in figures.items():
        begin, end = f"<!-- figures: {name} -->", f"<!-- end: {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{figure()}\n\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    for file, figures in FIGURES.items():
        path = ROOT / file
        text = path.read_text()
        wanted = with_figures(text, figures)
        if sys.argv[1:] != ["--check"]:
            path.write_text(wanted)
        elif text != wanted:
            raise SystemExit(f"{file}'s figures are old: run bench/figures.py")


if __name__ == "__main__":
    main()
