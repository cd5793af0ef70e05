"""Whole models with random weights on this GPU: prefill, decode steps against the replay of their kernels alone.

    python bench/gpu_models.py [--only REGEX] [--json PATH]

Llama-3-8B, and the shape of its 70B with fewer layers. A decode step is timed as the engine runs it (schedule, copy,
replay, sample) and as a bare replay of the model's CUDA graph.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from gpu_kernels import Timer, facts
from rich.console import Console
from rich.table import Table

from pybatch import ops
from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.execution.kv_cache import KvCache, kv_layout
from pybatch.model.batch import ForwardBatch
from pybatch.model.blocks.attention import Attention
from pybatch.model.blocks.mlp import MLP
from pybatch.model.config import AttentionConfig, LayerConfig, MLPConfig, ModelConfig, NormConfig
from pybatch.model.decoder import Decoder, Layer
from pybatch.model.layers import DenseLinear, Norm, NormedLinear, Packed, ResidualLinear, ScaledLinear
from pybatch.model.rope import RopeConfig, rotary_table
from pybatch.model.weights import INT8_MATMULS

DEVICE, DTYPE, LENGTH, BLOCK = torch.device("cuda"), torch.bfloat16, 2048, 16
MOST_OVER_REPLAY = 1.1  # of a step's time, in that of its kernels


@dataclass(frozen=True)
class Case:
    model: str
    quantization: str | None
    kv_cache: str
    sequences: int
    prompt: int = 512
    output: int = 64

    def __str__(self) -> str:
        return f"{self.model} {self.quantization or 'bfloat16'}, KV {self.kv_cache}, {self.sequences} sequences"


CASES = [
    Case(model, quantization, kv_cache, sequences)
    for model in ("Llama-3-8B", "Llama-3-70B, 16 layers")
    for quantization, kv_cache in ((None, "auto"), ("int8-weight-only", "fp8"), ("int8", "int8"))
    for sequences in (1, 64)
]


def config_of(model: str) -> ModelConfig:
    large = "70B" in model
    layer = LayerConfig(
        mixer=AttentionConfig(
            num_heads=64 if large else 32,
            num_kv_heads=8,
            head_dim=128,
            rope=RopeConfig(rotary_dim=128, theta=500000.0),
        ),
        mlp=MLPConfig(width=28672 if large else 14336),
    )
    return ModelConfig(
        name=model,
        family="llama",
        architecture="LlamaForCausalLM",
        vocab_size=128256,
        hidden_size=8192 if large else 4096,
        layers=(layer,) * (16 if large else 32),
        norm=NormConfig(eps=1e-5),
        max_position=8192,
    )


def random_decoder(config: ModelConfig, quantization: str | None, device: torch.device = DEVICE) -> Decoder:
    """A decoder whose weights keep the size of what goes through it."""

    def linear(n: int, k: int) -> Packed:
        weight = torch.randn(n, k, device=device, dtype=DTYPE) * k**-0.5
        if quantization is None:
            return DenseLinear(ops.pack_dense(weight), n)
        q, scale = ops.quantize_int8(weight)
        return ScaledLinear(INT8_MATMULS[quantization], ops.pack_int8(q), scale)

    hidden = config.hidden_size
    norm = Norm(torch.ones(hidden, device=device, dtype=DTYPE), config.norm.eps)
    layers = [
        Layer(
            mixer=Attention(
                config=layer.mixer,
                index=index,
                qkv=NormedLinear(norm, linear(layer.mixer.q_width + 2 * layer.mixer.kv_width, hidden)),
                q_norm=None,
                k_norm=None,
                v_norm=None,
                norm=config.norm,
                sinks=None,
                out=ResidualLinear(linear(hidden, layer.mixer.q_width)),
            ),
            mlp=MLP(
                config=layer.mlp,
                gate_up=NormedLinear(norm, linear(2 * layer.mlp.width, hidden)),
                down=ResidualLinear(linear(hidden, layer.mlp.width)),
            ),
        )
        for index, layer in enumerate(config.layers)
    ]
    return Decoder(
        config,
        DTYPE,
        embedding=linear(config.vocab_size, hidden),
        layers=layers,
        head=NormedLinear(norm, linear(config.vocab_size, hidden)),
        rotary={rope: rotary_table(rope, LENGTH).to(device) for rope in config.ropes},
    )


def engine_config(case: Case) -> EngineConfig:
    return EngineConfig(
        max_model_len=LENGTH,
        max_num_seqs=case.sequences,
        max_num_batched_tokens=8192,
        block_size=BLOCK,
        num_kv_blocks=case.sequences * LENGTH // BLOCK,
        kv_cache_dtype=case.kv_cache,  # type: ignore[arg-type]
        enable_prefix_caching=False,
    )


def run_engine(decoder: Decoder, case: Case) -> dict[str, float]:
    """Seconds of the prefill of all prompts, and of a decode step of all sequences (median)."""
    engine = Engine(decoder, None, engine_config(case))
    params = SamplingParams(temperature=0, max_tokens=case.output, ignore_eos=True, detokenize=False)

    def run(name: str) -> tuple[float, list[float]]:
        for i in range(case.sequences):
            ids = torch.randint(0, decoder.config.vocab_size, (case.prompt,)).tolist()
            engine.add_request(f"{name} {i}", ids, params)
        ends, counts = [time.perf_counter()], [engine.metrics.output_tokens]
        while engine.has_unfinished():
            for output in engine.step():
                if output.error is not None:
                    raise RuntimeError(output.error)
            ends.append(time.perf_counter())
            counts.append(engine.metrics.output_tokens)
        took = [end - begin for begin, end in pairwise(ends)]
        made = [after - before for before, after in pairwise(counts)]
        first = next(i for i, count in enumerate(counts) if count - counts[0] >= case.sequences)
        steps = [t for i, (t, n) in enumerate(zip(took, made, strict=True)) if i >= first and n == case.sequences]
        return ends[first] - ends[0], steps

    run("warm-up")  # loads the kernels of prefill
    prefill, steps = run("measured")
    return {"prefill_seconds": prefill, "step_seconds": statistics.median(steps)}


def replay(decoder: Decoder, case: Case, timed: Callable[[Callable[[], object]], float]) -> float:
    """What `timed` finds of a decode step's kernels: on a GPU seconds of a graph of the forward pass, replayed."""
    count, pages = case.sequences, LENGTH // BLOCK
    device = decoder.device
    caches = KvCache(kv_layout(decoder, engine_config(case)), count * pages, device)
    caches.pool.zero_()
    tables = torch.arange(count * pages, dtype=torch.int32, device=device).view(count, pages)
    last = case.prompt + case.output // 2
    batch = ForwardBatch(
        token_ids=torch.zeros(count, dtype=torch.int64, device=device),
        positions=torch.full((count,), last, device=device),
        slots=tables[:, last // BLOCK].long() * BLOCK + last % BLOCK,
        block_tables=tables,
        query_start=torch.arange(count + 1, dtype=torch.int32, device=device),
        seq_lens=torch.full((count,), last + 1, dtype=torch.int32, device=device),
        logits_rows=torch.arange(count, device=device),
    )
    return timed(lambda: decoder.forward(batch, caches.layers))


def measure(decoder: Decoder, case: Case) -> dict[str, object]:
    found: dict[str, object] = {"name": str(case)}
    try:
        seconds = run_engine(decoder, case)
        found |= seconds
        found["prefill_tokens_per_second"] = case.sequences * case.prompt / seconds["prefill_seconds"]
        found["decode_tokens_per_second"] = case.sequences / seconds["step_seconds"]
        found["replay_seconds"] = kernels = replay(decoder, case, Timer(21))
        found["weight_bytes_per_second"] = decoder.weight_bytes() / kernels
        found["step_over_replay"] = seconds["step_seconds"] / kernels
    except Exception:  # the other cases are worth running
        found["error"] = traceback.format_exc(limit=-4)
        print(f"{case}:\n{found['error']}", flush=True)
    gc.collect()
    torch.cuda.empty_cache()
    return found


def show(results: list[dict[str, object]]) -> None:
    table = Table("model", "prefill, tokens/s", "decode, tokens/s", "step, ms", "its kernels, ms", "ratio")
    columns: list[tuple[str, Callable[[float], str]]] = [
        ("prefill_tokens_per_second", "{:,.0f}".format),
        ("decode_tokens_per_second", "{:,.0f}".format),
        ("step_seconds", lambda s: f"{s * 1e3:.2f}"),
        ("replay_seconds", lambda s: f"{s * 1e3:.2f}"),
        ("step_over_replay", lambda r: f"{'[green]pass' if r <= MOST_OVER_REPLAY else '[red]MISSED'}[/] {r:.2f}"),
    ]
    for result in results:
        cells = [form(result[name]) if name in result else "failed" for name, form in columns]  # type: ignore[arg-type]
        table.add_row(str(result["name"]), *cells)
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Whole models with random weights on this GPU.")
    parser.add_argument("--only", default="", metavar="REGEX", help="cases whose name matches")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there, after each case")
    arguments = parser.parse_args()
    if not ops.CUDA:
        raise SystemExit("no GPU, or pybatch is built without CUDA: see pybatch env")
    torch.manual_seed(0)
    results: list[dict[str, object]] = []
    decoder, made_for = None, None
    for case in CASES:
        if not re.search(arguments.only, str(case)):
            continue
        if made_for != (case.model, case.quantization):
            decoder = None  # frees it before the next is made
            gc.collect()
            torch.cuda.empty_cache()
            decoder, made_for = (
                random_decoder(config_of(case.model), case.quantization),
                (case.model, case.quantization),
            )
        assert decoder is not None
        results.append(measure(decoder, case))
        if arguments.json:
            arguments.json.write_text(json.dumps({**facts(), "results": results}, indent=2) + "\n")
    show(results)
    raise SystemExit(any("error" in result for result in results))


if __name__ == "__main__":
    main()
