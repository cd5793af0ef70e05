"""Requests of every kind: one for each feature, and any number that mix features at random."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from engine.runs import some_prompt
from model.checkpoints.test_adapter import save_adapter
from tiny_model import HIDDEN, MLP

from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.kv_policies import HeavyHitters, SnapKV, StreamingLLM
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.sampling_params import RequestOutputKind

BLOCK = 8
VOCAB = 250
LONGEST = 64  # tokens of a prompt and its output
EOS = 0
LETTERS = {"a": 66, "b": 67, "c": 68, "d": 69, "0": 17, "first byte of é": 129, "second byte of é": 104}
SHARED = some_prompt(3 * BLOCK + 5, vocab=VOCAB)
REGEX = "([ab]c|d)+[0-9]{2}"

# By name, what one may ask for. Each comes with several prompts.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 0.9, "top_p": 0.9, "seed": 3},
    "penalised": {"temperature": 0.0, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    "forked": {"n": 3, "temperature": 1.0, "seed": 5},
    "searched": {"n": 2, "use_beam_search": True, "max_tokens": 8},
    "told": {"temperature": 0.0, "prompt_logprobs": 1},
    "streaming": {"temperature": 0.0, "kv_policy": StreamingLLM(window=10)},
    "snapkv": {"n": 2, "temperature": 1.0, "seed": 6, "kv_policy": SnapKV(budget=9, observed=4, pooling=3)},
    "heavy": {"temperature": 0.0, "kv_policy": HeavyHitters(heavy=5, recent=6)},
    "heavy, forked": {"n": 3, "temperature": 1.0, "seed": 7, "kv_policy": HeavyHitters(heavy=4, recent=4)},
    "streaming, forked": {"n": 2, "temperature": 1.0, "seed": 5, "kv_policy": StreamingLLM(window=1)},
    "held": {"temperature": 0.9, "seed": 4, "structured_outputs": {"regex": REGEX}, "ignore_eos": False},
    "held, repeating": {"temperature": 0.0, "structured_outputs": {"regex": "((ab)+c){9}"}},
    "held, forked": {"n": 3, "temperature": 1.0, "seed": 5, "structured_outputs": {"json": {"enum": [1, "two", [3]]}}},
    "held, searched": {"n": 2, "use_beam_search": True, "structured_outputs": {"regex": REGEX}, "max_tokens": 8},
    "held, pruned": {"structured_outputs": {"regex": "[a-d]+"}, "seed": 6, "kv_policy": StreamingLLM(window=10)},
    "not to be held": {"structured_outputs": {"regex": "(?=a)b"}},
    "held until nothing is left": {"structured_outputs": {"regex": "a{5}b+"}, "allowed_token_ids": [67, 3]},
}
POLICIES = (
    StreamingLLM(window=10),
    StreamingLLM(sinks=4, window=3),
    SnapKV(budget=6, observed=3, pooling=1),
    HeavyHitters(heavy=5, recent=4),
)
CONSTRAINTS: tuple[dict[str, Any], ...] = (
    {"regex": "[a-d]+"},
    {"regex": "(ab|c)+0?"},
    {"regex": REGEX},
    {"choice": ["ab", "abc", "d"]},
    {"json": {"enum": ["abc", 0, None]}},
)
STOPS = ("a", "ab", "bc", "ca", "dd", "é", "aé", "0a", "bad", "\ufffd", "\ufffdc")


@dataclass(frozen=True)
class Wish:
    """A request that may come any number of times."""

    kind: str
    prompt: tuple[int, ...]
    params: SamplingParams = field(hash=False)


def wishes() -> list[Wish]:
    """Of each of KINDS."""
    made = []
    for number, (kind, asked) in enumerate(KINDS.items()):
        for i, (shared, length, output) in enumerate(((True, 3, 9), (False, 37, 20), (True, 11, 24), (False, 1, 5))):
            prompt = (SHARED if shared else []) + some_prompt(length, 10 * number + i, vocab=VOCAB)
            params = SamplingParams(
                **{"max_tokens": output, "ignore_eos": True, "logprobs": 1, "detokenize": False, **asked}
            )
            made.append(Wish(kind, tuple(prompt), params))
    return made


def mixed(number: int, adapters: Sequence[LoRARequest], *, pruned: bool = True) -> Wish:
    """One that mixes features at random; the same for the same number. Many draw from a few letters alone, so that stop
    strings, bad words and drafts find something. pruned: it may ask for a kv_policy."""
    draw = random.Random(number)
    asked: dict[str, Any] = {}

    def ask(share: float, name: str, *choices: Any) -> bool:
        chosen = draw.random() < share
        if chosen:
            asked[name] = draw.choice(choices)
        return chosen

    letters = list(LETTERS.values())
    prompt = tuple(_prompt(draw, letters))
    room = LONGEST - len(prompt)
    asked["max_tokens"] = draw.choice((1, 2, 5, 9, 9, 20, 20))
    if asked["max_tokens"] > room or draw.random() < 0.05:
        asked["max_tokens"] = None  # as many as there is room for
    most = asked["max_tokens"] or room
    if draw.random() < 0.15 and most > 1:
        asked.update(use_beam_search=True, n=draw.choice((1, 2, 3)), best_of=3, max_tokens=min(most, 6))
        ask(0.5, "early_stopping", True, "never")
        ask(0.3, "length_penalty", 0.0, -1.0, 2.0)
        most = min(most, 6)
    else:
        ask(0.3, "n", 2, 3)
        ask(0.7, "temperature", 0.0, 0.0, 1e-5, 1e-4, 0.7, 5.0)
        ask(0.25, "kv_policy", *(POLICIES if pruned else (None,)))
    if draw.random() < 0.6:
        asked["allowed_token_ids"] = [*letters, EOS] if draw.random() < 0.5 else letters
    if draw.random() < 0.5:
        asked["stop"] = draw.sample(STOPS, draw.choice((1, 1, 2, 8)))
    if draw.random() < 0.2:
        asked["stop_token_ids"] = draw.sample([*letters, EOS], draw.choice((1, 3)))
    if draw.random() < 0.2:
        asked["bad_words"] = draw.sample(("a", "ab", "bcd", "é", "d0"), 2)
    if draw.random() < 0.3:
        asked["logit_bias"] = {draw.choice(letters): draw.choice((-100, -2.5, 3)), EOS: draw.choice((0, 4))}
    ask(0.3, "min_tokens", *range(1, most + 1))
    ask(0.25, "top_k", 1, 2, 5, 300)
    ask(0.25, "top_p", 1e-6, 0.3, 0.9)
    ask(0.15, "min_p", 0.05, 0.5, 1.0)
    ask(0.15, "presence_penalty", 1.5, -0.5)
    ask(0.15, "frequency_penalty", 0.4, -0.2)
    ask(0.15, "repetition_penalty", 0.8, 1.3)
    ask(0.7, "logprobs", 0, 1, 3, 3, -1)
    ask(0.25, "prompt_logprobs", 0, 2)
    ask(0.7, "seed", 0, number)
    ask(0.6, "ignore_eos", True)
    ask(0.4, "include_stop_str_in_output", True)
    ask(0.3, "skip_special_tokens", False)
    ask(0.1, "speculate", False)
    ask(0.1, "truncate_prompt_tokens", -1, 3, 20)
    ask(0.2, "structured_outputs", *CONSTRAINTS)
    ask(0.6, "output_kind", RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY)
    if adapters:
        ask(0.3, "lora_request", *adapters)
    return Wish("mixed", prompt, SamplingParams(**asked))


def _prompt(draw: random.Random, letters: list[int]) -> list[int]:
    length = draw.choice((1, 2, BLOCK, 2 * BLOCK + 1, 30, 50, LONGEST - 1, draw.randrange(1, LONGEST)))
    kind = draw.randrange(4)
    if kind == 0:  # in which drafts are found
        piece = [draw.choice(letters) for _ in range(draw.choice((1, 3, 7)))]
        return (piece * length)[:length]
    if kind == 1:
        return (SHARED + some_prompt(length, draw.randrange(3), vocab=VOCAB))[:length]
    return some_prompt(length, draw.randrange(3), vocab=VOCAB)


def bits(output: RequestOutput) -> Any:
    """All of an answer that does not depend on the company. Of several samples one that fails ends the others, wherever
    they are."""
    if output.error is not None:
        return output.error
    answers = [
        (each.token_ids, each.logprobs, each.cumulative_logprob, each.text, each.finish_reason, each.stop_reason)
        for each in output.outputs
    ]
    return output.prompt_token_ids, output.prompt_logprobs, answers


def save_adapters(folder: Path, count: int) -> list[LoRARequest]:
    """Of the tiny model."""
    requests = []
    for number in range(1, count + 1):
        random = torch.Generator().manual_seed(number)
        sizes = {"self_attn.q_proj": (HIDDEN, HIDDEN), "mlp.down_proj": (HIDDEN, MLP)}
        if number % 2:
            sizes |= {"self_attn.v_proj": (HIDDEN, HIDDEN), "mlp.up_proj": (MLP, HIDDEN)}
        modules = {
            f"model.layers.{layer}.{name}": {
                "A": torch.randn(4, width, generator=random) * 0.2,
                "B": torch.randn(height, 4, generator=random) * 0.2,
            }
            for layer in range(2)
            for name, (height, width) in sizes.items()
        }
        path = save_adapter(folder / f"adapter-{number}", modules, target_modules=list(sizes))
        requests.append(LoRARequest(path.name, number, str(path)))
    return requests
