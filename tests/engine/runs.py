"""A byte-level tokenizer, and engines run to their end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from pybatch.engine import Engine, RequestOutput, SamplingParams
from pybatch.engine.execution import state_cache
from pybatch.model import Decoder, Tokenizer

MakeEngine = Callable[..., Engine]

EOS = 0
TEXT = ["the cat sat on the mat. ", "naïve façade 日本語 emoji 🙂🙃 family 👩‍👩‍👧 ", "stop here, please! END\n"]


def make_tokenizer() -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    return Tokenizer(backend, special_tokens={"eos_token": "<eos>"})


def run(
    engine: Engine,
    prompts: list[list[int]],
    params: SamplingParams | list[SamplingParams],
    order: list[int] | None = None,
) -> list[RequestOutput]:
    """Runs prompts to their end, added in `order`; outputs in the order of prompts, whose place is each one's index."""
    each = params if isinstance(params, list) else [params] * len(prompts)
    for i in order or range(len(prompts)):
        engine.add_request(str(i), prompts[i], each[i], index=i)
    outputs = {output.request_id: output for output in drain(engine)}
    return [outputs[str(i)] for i in range(len(prompts))]


def drain(engine: Engine) -> Iterator[RequestOutput]:
    while engine.has_unfinished():
        yield from engine.step()


def some_prompt(length: int, seed: int = 0, vocab: int = 290) -> list[int]:
    return torch.randint(1, vocab, (length,), generator=torch.Generator().manual_seed(1000 * length + seed)).tolist()


@contextmanager
def memory_for_states(decoder: Decoder, count: int) -> Iterator[None]:
    """An engine that is made meanwhile has no memory for more slots of recurrent states."""
    layout = state_cache.state_layout(decoder)
    assert layout is not None
    with patch.object(state_cache, "free_memory", lambda device: 4 * count * layout.slot_bytes):  # half of half is used
        yield
