"""What large key biases cost in quantised KV caches, and what keys kept less their mean save.

    python bench/key_biases.py [--quick] [--spread 67] [--json PATH]

Qwen2's key projections have biases of about 100 in slow rotary pairs. The stand-in for it is SmolLM2-135M as a Qwen2
model whose keys get biases drawn from a normal distribution, of standard deviation `spread` in the SLOW slowest pairs
of every head and OTHER elsewhere. It is another model than SmolLM2, and a little worse; what counts is what
quantisation adds. Beside it stands SmolLM2 itself, with no biases (spread 0).

Perplexity is of the first PROMPTS times LENGTH tokens of Python's documentation (pydoc_data.topics), by prompt
log-probabilities, with weights and activations in float32 and in bfloat16. "plain": int8 and int4 without
pybatch/model/key_shifts.py. Needs transformers and gguf; about five minutes of CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

import pybatch
from pybatch import LLM, SamplingParams
from pybatch.engine import engine as engine_module
from pybatch.model.checkpoints.find import find_model
from pybatch.model.loader import load_tokenizer

SLOW, OTHER = 3, 0.5
PROMPTS, LENGTH = 6, 512
DTYPES = ("float32", "bfloat16")
KV_TYPES = ("the model's", "int8 plain", "int8", "int4 plain", "int4")


def save_stand_in(folder: Path, spread: float) -> Path:
    """SmolLM2-135M as a Qwen2 checkpoint in float32, with biases if `spread` is not 0. Returns the folder."""
    logging.disable_progress_bar()
    path = Path(find_model("smollm2-135m"))
    llama = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    known, config = llama.state_dict(), llama.config
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            max_position_embeddings=2048,
            rms_norm_eps=config.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]},
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    random = torch.Generator().manual_seed(0)
    half = config.hidden_size // config.num_attention_heads // 2
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = known[name].clone() if name in known else torch.zeros_like(tensor)
        if name.endswith("k_proj.bias") and spread:
            bias = torch.randn(config.num_key_value_heads, 2, half, generator=random) * OTHER
            bias[..., -SLOW:] *= spread / OTHER
            weights[name] = bias.flatten()
    model.load_state_dict(weights)
    model.save_pretrained(folder)
    return folder


def perplexity(model: Path, dtype: str, kv_type: str, prompts: list[list[int]]) -> float:
    name, _, plain = kv_type.partition(" ")
    extras: dict[str, Any] = {"kv_cache_dtype": name if name in ("int8", "int4") else "auto", "dtype": dtype}
    with patch.object(engine_module, "key_shifts", (lambda _: ()) if plain else engine_module.key_shifts):
        llm = LLM(
            str(model), skip_tokenizer_init=True, num_kv_blocks=64, max_model_len=LENGTH + 1,
            enable_prefix_caching=False, threads=1, **extras,
        )  # fmt: skip
    params = SamplingParams(max_tokens=1, prompt_logprobs=0, temperature=0, detokenize=False)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    scores = [
        entry[token].logprob
        for output, prompt in zip(outputs, prompts, strict=True)
        for token, entry in zip(prompt, output.prompt_logprobs or [], strict=True)
        if entry is not None
    ]
    assert len(scores) == sum(len(prompt) - 1 for prompt in prompts)
    return math.exp(-math.fsum(scores) / len(scores))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spread", type=float, action="append", help="of the biases, repeatable (default: 0 and 67)")
    parser.add_argument("--quick", action="store_true", help="one prompt")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    text = "\n\n".join(topics[name] for name in sorted(topics)[:40])
    ids = load_tokenizer(find_model("smollm2-135m")).encode(text)
    prompts = [ids[i * LENGTH : (i + 1) * LENGTH] for i in range(1 if args.quick else PROMPTS)]

    results: dict[str, dict[str, dict[str, float]]] = {}
    table = Table("spread", "dtype", *KV_TYPES, title=f"perplexity, pybatch {pybatch.__version__}")
    for spread in args.spread or (0.0, 67.0):
        with tempfile.TemporaryDirectory() as folder:
            model = save_stand_in(Path(folder), spread)
            for dtype in DTYPES:
                found: dict[str, float] = {}
                for kv_type in KV_TYPES:
                    found[kv_type] = perplexity(model, dtype, kv_type, prompts)
                    print(f"{spread:g} {dtype} {kv_type}: {found[kv_type]:.3f}", file=sys.stderr, flush=True)
                results.setdefault(f"{spread:g}", {})[dtype] = found
                base = found[KV_TYPES[0]]
                cells = [f"{value:.3f} ({value / base - 1:+.2%})" for value in list(found.values())[1:]]
                table.add_row(f"{spread:g}", dtype, f"{base:.3f}", *cells)
    if args.json:
        facts = {
            "date": date.today().isoformat(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "load_average": round(os.getloadavg()[0], 1),
            "command": " ".join(sys.argv),
            "tokens": sum(len(prompt) - 1 for prompt in prompts),
        }
        args.json.write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
