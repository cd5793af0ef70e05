"""What adapters that requests choose cost: a batch that decodes and its prompts, with several adapters mixed, with one,
without, and with one merged into the weights.

    python bench/lora.py MODEL [--quantization int8] [--batch 32] [--adapters 8] [--rank 16] [--rounds 3] [--json PATH]

MODEL: a Hugging Face directory of the Llama family. Adapters are random, of all projections. A decode step
is the median of those in which all requests decode; prompts are in tokens per second of the steps before.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from pybatch import LLM, LoRARequest, SamplingParams

PROMPT, OUTPUT = 32, 24  # tokens


def write_adapter(folder: Path, config: dict[str, Any], rank: int, seed: int) -> Path:
    random = torch.Generator().manual_seed(seed)
    hidden, mlp = config["hidden_size"], config["intermediate_size"]
    dim = config.get("head_dim") or hidden // config["num_attention_heads"]
    q, kv = config["num_attention_heads"] * dim, config["num_key_value_heads"] * dim
    shapes = {
        "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (mlp, hidden), "mlp.up_proj": (mlp, hidden),
        "mlp.down_proj": (hidden, mlp),
    }  # fmt: skip
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        for name, (n, k) in shapes.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, k, generator=random) * 0.02
            tensors[f"{module}.lora_B.weight"] = torch.randn(n, rank, generator=random) * 0.02
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": rank}))
    return folder


def measure(llm: LLM, batch: int, cases: Sequence[Sequence[LoRARequest | None]], rounds: int) -> list[dict[str, float]]:
    """Of each case, whose requests have these adapters by turns. Cases run by turns too, as no machine stays the same
    for long; their first runs, which load adapters and record graphs, do not count."""
    decodes: list[list[float]] = [[] for _ in cases]
    prompts: list[list[float]] = [[] for _ in cases]
    for turn in range(rounds + 1):
        for case, adapters in enumerate(cases):
            steps, before_them = run(llm, batch, adapters)
            if turn:
                decodes[case] += steps
                prompts[case].append(before_them)
    found = [(median(steps), median(times)) for steps, times in zip(decodes, prompts, strict=True)]
    return [
        {"step_ms": step * 1e3, "tokens_per_second": batch / step, "prompt_tokens_per_second": batch * PROMPT / prompt}
        for step, prompt in found
    ]


def run(llm: LLM, batch: int, adapters: Sequence[LoRARequest | None]) -> tuple[list[float], float]:
    """Seconds of each step in which all decode, and of all steps before."""
    engine, vocab = llm.engine, llm.engine.decoder.config.vocab_size
    for i in range(batch):
        chosen = adapters[i % len(adapters)]
        params = SamplingParams(temperature=0, max_tokens=OUTPUT, ignore_eos=True, lora_request=chosen)
        engine.add_request(str(i), [(7 * i + 3 * j) % vocab for j in range(PROMPT)], params)
    decodes, prompts = [], 0.0
    while engine.has_unfinished():
        before, begin = engine.metrics.step_tokens, time.perf_counter()
        engine.step()
        seconds, tokens = time.perf_counter() - begin, engine.metrics.step_tokens - before
        if tokens == batch and engine.num_waiting == 0:
            decodes.append(seconds)
        elif tokens > batch:
            prompts += seconds
    engine.reset_prefix_cache()
    return decodes, prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quantization")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = json.loads((args.model / "config.json").read_text())
    settings: dict[str, Any] = {
        "quantization": args.quantization, "num_kv_blocks": args.batch * (PROMPT + OUTPUT) // 16 + 64,
        "max_model_len": PROMPT + OUTPUT, "max_num_seqs": args.batch, "skip_tokenizer_init": True,
    }  # fmt: skip
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folders = [write_adapter(Path(temporary, f"{i}"), config, args.rank, i) for i in range(args.adapters)]
        requests = [LoRARequest(path.name, i, str(path)) for i, path in enumerate(folders, start=1)]
        loads: dict[str, dict[str, Any]] = {
            "plain": {}, "merged": {"adapter": folders[0]},
            "lora": {"enable_lora": True, "max_loras": args.adapters, "max_lora_rank": args.rank},
        }  # fmt: skip
        for name, more in loads.items():
            llm = LLM(args.model, **settings, **more)
            if name == "lora":
                names = "none of the requests", "one adapter", f"{args.adapters} adapters"
                cases = [[None], requests[:1], requests]
            else:
                names, cases = (("no LoRA" if name == "plain" else "one merged"),), [[None]]
            figures |= zip(names, measure(llm, args.batch, cases, args.rounds), strict=True)
            del llm
            gc.collect()

    table = Table(
        title=f"{args.model.name}, {args.quantization or 'as it is'}: {args.batch} requests, rank {args.rank}"
    )
    for name in ("", "decode step, ms", "of none", "tokens/s", "prompt tokens/s"):
        table.add_column(name, justify="right")
    first = figures["none of the requests"]["step_ms"]
    for name, each in figures.items():
        table.add_row(
            name, f"{each['step_ms']:.1f}", f"{each['step_ms'] / first:.2f}", f"{each['tokens_per_second']:,.0f}",
            f"{each['prompt_tokens_per_second']:,.0f}",
        )  # fmt: skip
    Console().print(table)
    if args.json is not None:
        about = {"date": str(date.today()), "model": args.model.name, "quantization": args.quantization}
        sizes = {"batch": args.batch, "adapters": args.adapters, "rank": args.rank, "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps({**about, **sizes, "figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
