"""vLLM's CPU build. It wants tcmalloc and Intel's OpenMP preloaded: python= may name a script that does so."""

from __future__ import annotations

import os

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


class Engine:
    def __init__(self, model: str, precision: str, threads: int) -> None:
        os.environ |= {
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
            "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        }
        import vllm

        self.version = vllm.__version__
        self.vllm = vllm
        self.llm = vllm.LLM(
            model=model,
            dtype=DTYPES[precision],
            max_model_len=1024,
            max_num_seqs=64,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
        )

    def generate(self, requests: list[dict]) -> list[list[int]]:
        prompts = [{"prompt_token_ids": request["prompt"]} for request in requests]
        params = [
            self.vllm.SamplingParams(temperature=0, max_tokens=request["max_new"], ignore_eos=True, detokenize=False)
            for request in requests
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]
