"""pybatch through its public API. Precisions: fp32, bf16, fp16, int8 (W8A8), int8-weight-only, gguf."""

from __future__ import annotations

import pybatch
from pybatch import ops


class Engine:
    def __init__(self, model: str, precision: str, threads: int) -> None:
        dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
        self.version = pybatch.__version__
        self.uses = ops.ISA
        self.llm = pybatch.LLM(
            model,
            dtype=dtypes.get(precision, "auto"),
            quantization=None if precision in dtypes else precision,
            max_model_len=1024,
            enable_prefix_caching=False,  # every round is the same work again: a hit would skip it
            threads=threads,
        )

    def generate(self, requests: list[dict]) -> list[list[int]]:
        params = [
            pybatch.SamplingParams(temperature=0, max_tokens=r["max_new"], ignore_eos=True, detokenize=False)
            for r in requests
        ]
        outputs = self.llm.generate([r["prompt"] for r in requests], params, use_tqdm=False)
        return [list(o.outputs[0].token_ids) for o in outputs]
