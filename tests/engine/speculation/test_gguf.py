"""Drafts change no bit of a model in its GGUF file's own bits, whose kernels take other paths by the number of rows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from engine.runs import run, some_prompt
from gguf import GGMLQuantizationType as Kind
from model.families import SMALL
from model.gguf_writing import begin, finish, write_tensors
from transformers import LlamaConfig, LlamaForCausalLM

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.model import Decoder, load_model

PROMPTS = [some_prompt(5 + 9 * i % 40, i, vocab=20) * (1 + i % 3) for i in range(9)]
PARAMS = [
    SamplingParams(
        temperature=(0.0, 0.0, 0.7)[i % 3],
        allowed_token_ids=[3, 5, 7],  # so that something repeats
        seed=i,
        max_tokens=30,
        ignore_eos=True,
        logprobs=2,
    )
    for i in range(9)
]


def by_kind(name: str) -> Kind:
    kinds = {"q_proj": Kind.Q4_K, "k_proj": Kind.Q6_K, "v_proj": Kind.Q5_0, "up_proj": Kind.Q8_0, "o_proj": Kind.F16}
    return kinds.get(name.split(".")[-2], Kind.Q4_1)


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0, by_kind])
def test_drafts_change_no_bit_of_a_gguf_model(kind: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SMALL, "hidden_size": 256, "intermediate_size": 512}))
    writer = begin(tmp_path / "model.gguf", "llama", model)
    write_tensors(writer, "llama", model, kind)
    finish(writer)
    packed = load_model(tmp_path / "model.gguf", quantization="gguf", skip_tokenizer=True).decoder
    plain = load_model(tmp_path / "model.gguf", skip_tokenizer=True).decoder

    def run_with(speculative: dict[str, object] | None, draft: Decoder | None = None) -> tuple[list[object], Engine]:
        engine = Engine(packed, None, EngineConfig(num_kv_blocks=256, speculative_config=speculative), draft)
        outputs = [output.outputs[0] for output in run(engine, PROMPTS, PARAMS)]
        return [(each.token_ids, each.logprobs) for each in outputs], engine

    expected, _ = run_with(None)
    for method in ({"method": "ngram", "prompt_lookup_min": 1}, {"method": "suffix"}, {"model": "given"}):
        found, engine = run_with({**method, "adaptive": False}, plain if "model" in method else None)
        assert found == expected
        assert engine.metrics.drafts.accepted_tokens > 0, method
