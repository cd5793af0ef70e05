"""Hugging Face transformers: one padded batch through generate(), in groups of equal output length. fp32, bf16."""

from __future__ import annotations

from collections import defaultdict

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
        outputs: list[list[int]] = [[] for _ in requests]
        groups = defaultdict(list)
        for i, r in enumerate(requests):
            groups[r["max_new"]].append(i)
        for max_new, members in groups.items():
            width = max(len(requests[i]["prompt"]) for i in members)
            ids = torch.zeros(len(members), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(members):
                prompt = requests[i]["prompt"]
                ids[row, width - len(prompt) :] = torch.tensor(prompt)
                mask[row, width - len(prompt) :] = 1
            got = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max_new,
                min_new_tokens=max_new,
                do_sample=False,
                pad_token_id=0,
            )
            for row, i in enumerate(members):
                outputs[i] = got[row, width:].tolist()
        return outputs
