"""Hugging Face transformers: generate() on one padded batch, as long as its longest answer. fp32, bf16."""

from __future__ import annotations

import torch
import transformers


class Engine:
    def __init__(self, model: str, precision: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.version = transformers.__version__
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.model = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        self.model.generation_config.eos_token_id = None  # the work is fixed: nobody stops early

    @torch.inference_mode()
    def generate(self, requests: list[dict]) -> list[list[int]]:
        width = max(len(r["prompt"]) for r in requests)
        longest = max(r["max_new"] for r in requests)
        ids = torch.zeros(len(requests), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, request in enumerate(requests):
            prompt = request["prompt"]
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        lengths = {"max_new_tokens": longest, "min_new_tokens": longest}
        tokens = self.model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=0, **lengths)
        return [row[width : width + r["max_new"]].tolist() for row, r in zip(tokens, requests, strict=True)]
