"""The programs in bench/ find what they import."""

import importlib
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pybatch

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
NAMES = (
    "compare_statistics crash_points disconnects estimate gpu_kernels gpu_models gpu_sanitize idle_connections "
    "kernels key_biases kill load memory_bound million neighbours order policies quality random_model serve_fuzz "
    "serving sharing speculation steps structured thrash throughput"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_benchmark_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    assert callable(runpy.run_path(str(BENCH / f"{name}.py"), run_name=name)["main"])


WITHOUT = ["gguf", "llguidance", "anthropic", "openai", "fastapi", "uvicorn", "ray", "polars", "datasets"]
OF_A_GPU = ["tests/cuda", "tests/ops", "tests/engine/test_invariance.py", "tests/engine/fuzz.py", "tests/fuzz.py"]
COLLECT = """
import runpy, sys, pytest
for name in {without}:
    sys.modules[name] = None
sys.path.insert(0, "{bench}")
for name in ("gpu_kernels", "gpu_models", "gpu_sanitize"):
    runpy.run_path(f"{bench}/{{name}}.py", run_name=name)
sys.exit(pytest.main(["--collect-only", "-p", "no:cacheprovider", "-c", "pyproject.toml", *{paths}]))
"""


def test_what_runs_on_a_gpu_needs_few_packages() -> None:
    """A machine lent with a GPU has torch and what pybatch computes with."""
    code = COLLECT.format(without=WITHOUT, bench=BENCH, paths=OF_A_GPU)
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]


@pytest.mark.parametrize("number", [0, 2, 6])
def test_where_kv_is_a_tenth_of_demand_hardly_a_token_is_computed_twice(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCH)
    thrash = importlib.import_module("thrash")
    full, short = (thrash.run(thrash.SHAPES[number], share) for share in (1.05, 0.1))
    assert short.recomputed <= 0.05 * short.computed
    assert full.recomputed == full.preemptions == 0
    assert full.clock > 0.55 * short.clock
    greedy = thrash.run(thrash.SHAPES[number], 0.1, predict_lengths=False)
    assert greedy.recomputed > 2 * short.recomputed
    assert short.clock < 1.1 * greedy.clock  # which is not paid for by small batches


def test_forced_text_has_the_log_probabilities_of_a_prompt(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    quality = importlib.import_module("quality")
    llm = pybatch.LLM(tiny_model, num_kv_blocks=64, max_model_len=128, skip_tokenizer_init=True)
    forcer = quality.Forcer(llm, "int8", 128)
    text = [(7 * i * i) % 50 + 3 for i in range(60)]
    whole = forcer.run(text, [3, 3], None, score_prompt=True)
    for policy in (None, pybatch.StreamingLLM(sinks=4, window=64)):  # which keeps all of so short a text
        forced = forcer.run(text[:40], text[40:], policy)
        assert [logprob for logprob, _ in forced.scores] == whole.prompt_logprobs[39:]
    pruned = forcer.run(text[:40], text[40:], pybatch.StreamingLLM(sinks=4, window=8))
    assert pruned.scores[0] == forced.scores[0]
    assert pruned.scores[1:] != forced.scores[1:]
    assert pruned.blocks < forced.blocks


@pytest.mark.parametrize("quantization", [None, "int8-weight-only", "int8"])
def test_the_random_models_of_the_gpu_bench_run(quantization: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    models = importlib.import_module("gpu_models")
    config = models.config_of("Llama-3-8B")
    layer = config.layers[0]
    small = replace(
        config,
        vocab_size=300,
        hidden_size=64,
        layers=(replace(layer, mixer=replace(layer.mixer, num_heads=4, num_kv_heads=2, head_dim=16,
                rope=replace(layer.mixer.rope, rotary_dim=16)), mlp=replace(layer.mlp, width=96)),) * 2,
    )  # fmt: skip
    decoder = models.random_decoder(small, quantization, torch.device("cpu"))
    case = models.Case("small", quantization, "auto", sequences=3, prompt=20, output=4)
    seconds = models.run_engine(decoder, case)
    assert seconds["step_seconds"] > 0
    assert seconds["prefill_seconds"] > 0
    logits: list[torch.Tensor] = []
    models.replay(decoder, case, lambda call: logits.append(call()) or 0.0)
    assert logits[0].shape == (3, 300)
    assert logits[0].isfinite().all()
    assert logits[0].std() > 0.1


def test_a_steps_python_is_timed_without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    steps = importlib.import_module("steps")
    monkeypatch.setattr(steps.graphs, "CpuGraph", steps.EmptyGraph)
    assert steps.running(4)["step"]["median_ms"] > 0
