"""CTranslate2's Generator, static batches; each row ends at its own length. fp32, int8 and int8_float32."""

from __future__ import annotations

import json
from pathlib import Path

import ctranslate2


class Engine:
    """model: the converted folder."""

    def __init__(self, model: str, precision: str, threads: int) -> None:
        self.version = ctranslate2.__version__
        compute_type = {"fp32": "float32"}.get(precision, precision)
        self.generator = ctranslate2.Generator(model, device="cpu", compute_type=compute_type, intra_threads=threads)
        self.uses = f"{self.generator.compute_type}, of {sorted(ctranslate2.get_supported_compute_types('cpu'))}"
        self.vocabulary = json.loads((Path(model) / "vocabulary.json").read_text())

    def generate(self, requests: list[dict]) -> list[list[int]]:
        wanted = [r["max_new"] for r in requests]
        produced = [0] * len(requests)

        def is_done(step: ctranslate2.GenerationStepResult) -> bool:
            produced[step.batch_id] += 1
            return produced[step.batch_id] >= wanted[step.batch_id]

        results = self.generator.generate_batch(
            [[self.vocabulary[i] for i in r["prompt"]] for r in requests],
            max_length=max(wanted),
            min_length=max(wanted),
            sampling_topk=1,
            end_token=self.vocabulary[-1],  # which min_length keeps away, so that nobody stops early
            include_prompt_in_result=False,
            return_end_token=True,
            callback=is_done if len(set(wanted)) > 1 else None,
        )
        return [result.sequences_ids[0][:n] for result, n in zip(results, wanted, strict=True)]
