"""CTranslate2's Generator, static batches; each row ends at its own length. fp32, int8 and int8_float32."""

from __future__ import annotations

from pathlib import Path

import ctranslate2
from tokenizers import Tokenizer

UNUSED_TOKEN = "<jupyter_script>"  # as end of sequence, so that nobody stops early


class Engine:
    """model: the converted folder, with the model's tokenizer.json in it or in smollm2-hf beside it."""

    def __init__(self, model: str, precision: str, threads: int) -> None:
        self.version = ctranslate2.__version__
        compute_type = {"fp32": "float32"}.get(precision, precision)
        self.generator = ctranslate2.Generator(model, device="cpu", compute_type=compute_type, intra_threads=threads)
        places = [Path(model) / "tokenizer.json", Path(model).parent / "smollm2-hf/tokenizer.json"]
        self.tokenizer = Tokenizer.from_file(str(next(place for place in places if place.exists())))

    def generate(self, requests: list[dict]) -> list[list[int]]:
        wanted = [r["max_new"] for r in requests]
        produced = [0] * len(requests)

        def is_done(step: ctranslate2.GenerationStepResult) -> bool:
            produced[step.batch_id] += 1
            return produced[step.batch_id] >= wanted[step.batch_id]

        results = self.generator.generate_batch(
            [[self.tokenizer.id_to_token(i) for i in r["prompt"]] for r in requests],
            max_length=max(wanted),
            min_length=max(wanted),
            sampling_topk=1,
            end_token=UNUSED_TOKEN,
            include_prompt_in_result=False,
            return_end_token=True,
            callback=is_done if len(set(wanted)) > 1 else None,
        )
        return [result.sequences_ids[0][:n] for result, n in zip(results, wanted, strict=True)]
