"""The programs in bench/ find what they import."""

import importlib
import runpy
from pathlib import Path

import pytest

import pybatch

BENCH = Path(__file__).resolve().parent.parent / "bench"
NAMES = (
    "crash_points disconnects estimate gpu_kernels gpu_models idle_connections kernels key_biases kill load "
    "memory_bound million neighbours order policies quality random_model serve_fuzz serving sharing speculation "
    "step_profile steps structured thrash throughput"
)


@pytest.mark.parametrize("name", NAMES.split())
def test_a_benchmark_imports(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCH)
    assert callable(runpy.run_path(str(BENCH / f"{name}.py"), run_name=name)["main"])


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
