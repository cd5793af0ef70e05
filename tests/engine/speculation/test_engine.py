"""An engine with drafts gives what one without gives, bit by bit."""

from __future__ import annotations

from typing import Any

import pytest
from engine.runs import MakeEngine, run, some_prompt

from pybatch.engine import RequestOutput, SamplingParams
from pybatch.model import Decoder

FIXED = {"method": "ngram", "num_speculative_tokens": 5, "prompt_lookup_min": 1, "adaptive": False}
PROMPTS = [some_prompt(3 + 5 * i % 40, i, vocab=20) * (1 + i % 3) for i in range(24)]
PARAMS = [
    SamplingParams(
        temperature=(0.0, 0.3, 0.8)[i % 3],
        top_p=0.9 if i % 4 == 1 else 1.0,
        repetition_penalty=1.05 if i % 5 == 0 else 1.0,
        frequency_penalty=0.1 if i % 7 == 0 else 0.0,
        logit_bias={1: 2.0} if i % 6 == 0 else None,
        max_tokens=10 + 7 * i % 50,
        min_tokens=i % 10,
        logprobs=2,
        seed=i,
    )
    for i in range(24)
]


def bits(outputs: list[RequestOutput]) -> list[Any]:
    assert not any(output.error for output in outputs)
    return [[(s.token_ids, s.logprobs, s.text, s.finish_reason, s.stop_reason) for s in o.outputs] for o in outputs]


@pytest.mark.parametrize(
    "config",
    [
        {"max_num_seqs": 1},
        {"max_num_seqs": 5},
        {"max_num_seqs": 64},
        {"max_num_batched_tokens": 16, "max_num_seqs": 7},
        {"num_kv_blocks": 40, "block_size": 8},
        {"num_kv_blocks": 40, "block_size": 8, "enable_prefix_caching": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("quantised", [False, True])
def test_drafts_change_no_bit(
    make_engine: MakeEngine, decoder: Decoder, int8_decoder: Decoder, config: dict[str, Any], quantised: bool
) -> None:
    model = int8_decoder if quantised else decoder
    expected = bits(run(make_engine(model), PROMPTS, PARAMS))
    engine = make_engine(model, speculative_config=FIXED, **config)
    assert bits(run(engine, PROMPTS, PARAMS)) == expected
    assert engine.metrics.drafts.accepted_tokens > 0
    assert engine.metrics.drafts.accepted_tokens < engine.metrics.drafts.tokens
