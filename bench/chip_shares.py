"""What share of a chip's ceilings pybatch's kernels reach, by least squares over a run of bench/gpu_kernels.py.

    python bench/chip_shares.py bench/results/gpu-NVIDIA-H100-80GB-HBM3-*/kernels.json MODELS [--write]

A kernel's time is taken for a sum: of a launch, of bytes at a share of the copy's bandwidth, and of products at a share
of the peak of bf16. MODELS: of bench/gpu_models.py on the same chip. What a decode step of one sequence there takes
beyond its products and attention is taken for each layer's other kernels; the steps of 64 sequences and the prompts are
compared with what the shares make of them, and are in none. --write: into pybatch/tune/chip_shares.json, which
`pybatch plan --chip` reads.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from pybatch.engine import EngineConfig
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.model.families.read import config_from_hf
from pybatch.model.unweighted import planned_decoder
from pybatch.tune.chips import CHIPS, SHARES, Shares
from pybatch.tune.roofline import Roofline
from pybatch.tune.step_times import StepShape, non_negative_least_squares

BYTES = {"dense": 2.0, "w8a16": 1.0, "w8a8": 1.0}  # of a weight
FEW = 65  # rows: with more the bytes of weights are lost beside the arithmetic
ATTENTION = {"decode": "bfloat16", "decode int8": "int8", "decode e4m3": "fp8", "decode int4": "int4"}
CHIP = CHIPS["H100-SXM"]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
    "num_key_value_heads": 8,
}
FIELDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
MODELS = {  # of bench/gpu_models.py
    "Llama-3-8B": (4096, 14336, 32, 32),
    "Llama-3-70B, 16 layers": (8192, 28672, 16, 64),
}
PROMPT, OUTPUT, BUDGET = 512, 64, 2048  # of its cases


def matmul_shares(results: list[dict[str, Any]], ceilings: dict[str, float], kernel: str) -> dict[str, float]:
    """seconds: of a launch. bytes, arithmetic: shares, 0 where nothing tells them apart."""
    rows, seconds, fewest = [], [], FEW
    for result in results:
        found = re.fullmatch(rf"{kernel} (\d+) x (\d+) x (\d+)", result["name"])
        if found:
            m, n, k = map(int, found.groups())
            fewest = min(fewest, m)
            rows.append([1.0, BYTES[kernel] * n * k / ceilings["copy"], 2.0 * m * n * k / ceilings["bf16"]])
            seconds.append(result["seconds"])
    measured = np.array(seconds)
    costs = non_negative_least_squares(np.array(rows) / measured[:, None], np.ones(len(rows)))
    return {
        "seconds": float(costs[0]),
        "bytes": float(1 / costs[1]) if costs[1] and fewest < FEW else 0.0,
        "arithmetic": float(1 / costs[2]) if costs[2] else 0.0,
    }


def mean_share(results: list[dict[str, Any]], pattern: str, share: str) -> float:
    found = [result[share] for result in results if re.fullmatch(pattern, result["name"])]
    return sum(found) / len(found)


def steps(models: list[dict[str, Any]], shares: Shares) -> Iterator[tuple[str, float, float, int]]:
    """Of each case the decode step and the prompts: a name, the seconds predicted and measured, and for a decode step
    of one sequence the model's layers, else 0."""
    for result in models:
        name, quantization, kv, count = re.fullmatch(r"(.*) (\S+), KV (\S+), (\d+) sequences", result["name"]).groups()
        quantization, sequences = None if quantization == "bfloat16" else quantization, int(count)
        config = config_from_hf({**LLAMA, **dict(zip(FIELDS, MODELS[name], strict=True))}, name=name)
        decoder = planned_decoder(config, torch.bfloat16, quantization)
        layout = kv_layout(decoder, EngineConfig(kv_cache_dtype=kv))
        roofline = Roofline(CHIP, shares, decoder, quantization, layout, None, kv)
        decode = StepShape(sequences, sequences, sequences * (PROMPT + OUTPUT // 2), 0)
        layers = config.num_layers if sequences == 1 else 0
        yield f"{result['name']}, decode", roofline.seconds(decode), result["step_seconds"], layers
        each = min(sequences, BUDGET // PROMPT)
        prompts = StepShape(each * PROMPT, each, 0, each * PROMPT * (PROMPT + 1) // 2)
        yield (
            f"{result['name']}, prompts",
            roofline.seconds(prompts) * sequences / each,
            result["prefill_seconds"],
            0,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kernels", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    run = json.loads(arguments.kernels.read_text())
    results, ceilings = run["results"], run["ceilings"]
    fields = {
        "chip": run["chip"],
        "date": run["date"],
        "ceilings": ceilings,
        "matmuls": {kernel: matmul_shares(results, ceilings, kernel) for kernel in BYTES},
        "decode_attention": {
            dtype: mean_share(results, rf"{name} group .*", "of_copy") for name, dtype in ATTENTION.items()
        },
        "prefill_attention": mean_share(results, r"prefill .*", "of_bf16"),
        "layer_seconds": 0.0,
    }
    models = json.loads(arguments.models.read_text())["results"]
    cases = steps(models, Shares.of(fields, CHIP))
    fields["layer_seconds"] = max(
        0.0, statistics.median((measured - predicted) / layers for _, predicted, measured, layers in cases if layers)
    )
    table = Table("step", "predicted ms", "measured ms", "off by", title=f"{run['chip']}, {run['date'][:10]}")
    for name, predicted, measured, layers in steps(models, Shares.of(fields, CHIP)):
        off = f"{predicted / measured - 1:+.0%}" + (" (fitted)" if layers else "")
        table.add_row(name, f"{predicted * 1e3:.2f}", f"{measured * 1e3:.2f}", off)
    text = json.dumps(fields, indent=1) + "\n"
    print(text)
    Console(width=120).print(table)
    if arguments.write:
        SHARES.write_text(text)


if __name__ == "__main__":
    main()
