"""What is computed once is shared, down to the token, and no bit tells."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from engine.runs import MakeEngine, drain, run, some_prompt
from engine.wishes import wishes

from pybatch.engine import SamplingParams
from pybatch.model import load_model


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("length", [64, 71, 79])  # of the common prefix, in blocks of 16
def test_prompts_with_a_common_prefix_compute_it_once(
    make_engine: MakeEngine, model_path: Path, length: int, kv_cache_dtype: str
) -> None:
    decoder = load_model(model_path, skip_tokenizer=True, quantization="int8").decoder
    prefix = some_prompt(length)
    prompts = [prefix + some_prompt(3 + i, i) for i in range(12)]
    params = [SamplingParams(seed=i, max_tokens=5, ignore_eos=True, logprobs=2) for i in range(12)]
    config = {"kv_cache_dtype": kv_cache_dtype, "max_num_batched_tokens": 64, "max_num_seqs": 6}
    engine = make_engine(decoder, with_tokenizer=False, **config)
    found = run(engine, prompts, params)
    alone = make_engine(decoder, with_tokenizer=False, enable_prefix_caching=False, **config)
    assert [output.outputs for output in found] == [output.outputs for output in run(alone, prompts, params)]
    ideal = 11 * length
    assert 0.9 * ideal <= engine.metrics.cached_tokens <= ideal + 11 * 3  # the first of their own may be alike


def test_a_sequence_that_is_preempted_in_the_step_in_which_it_joins_holds_nothing(
    make_engine: MakeEngine,
) -> None:
    """What was to be copied for it is let go."""
    engine = make_engine(block_size=8, num_kv_blocks=12, max_num_seqs=3, max_num_batched_tokens=3)
    every = [wish for wish in wishes() if wish.params.structured_outputs is None]
    for first, second in itertools.permutations(range(0, len(every), 3), 2):
        for number in (first, second):
            engine.add_request(str(number), list(every[number].prompt), every[number].params)
        for _ in drain(engine):
            engine.check_integrity()
