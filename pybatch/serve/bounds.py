"""The most that one request may ask for."""

from __future__ import annotations

import reprlib

from pybatch.api.inputs import Conversation
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine import SamplingParams
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import BACKGROUND

MOST_SAMPLES = 128  # of each prompt; OpenAI's limit
MOST_PROMPTS = 2048
MOST_MESSAGES = 1 << 14
MOST_LOGPROBS = 20  # at each position, as in vLLM
MOST_TEXTS, MOST_CHARACTERS = 256, 1 << 14  # of stop strings, and of bad words


def expect_few(asked: Generation, vocab_size: int) -> None:
    """Raises RequestError for more messages, stop strings and the like than the server takes: they are rendered, and
    looked for with each token, on threads that all requests share."""
    for prompt in asked.prompts:
        if isinstance(prompt, Conversation) and len(prompt.messages) > MOST_MESSAGES:
            said = f"messages: expected at most {MOST_MESSAGES:,}, got {len(prompt.messages):,}"
            raise RequestError(said, "invalid_value", "messages")
    for given, name in (("stop", asked.stop), ("bad_words", "bad_words")):
        texts = asked.params.get(given) or ()
        texts = (texts,) if isinstance(texts, str) else texts
        if len(texts) > MOST_TEXTS or sum(map(len, texts)) > MOST_CHARACTERS:
            said = f"{name}: expected at most {MOST_TEXTS} texts here, of {MOST_CHARACTERS:,} characters together"
            raise RequestError(said, "invalid_value", name)
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        if len(asked.params.get(name) or ()) > vocab_size:
            said = f"{name}: expected at most the {vocab_size:,} tokens of the vocabulary"
            raise RequestError(said, "invalid_value", name)


def expect_bounded(asked: Generation, params: Params, most_requests: float) -> None:
    """Raises RequestError for more than the server takes. params: with the defaults. most_requests: the engine's."""
    logprobs = "top_logprobs" if isinstance(asked.prompts[0], Conversation) else "logprobs"
    bounds = [
        (asked.input, len(asked.prompts), 1, int(min(MOST_PROMPTS, most_requests))),
        ("priority", asked.standing.priority, 1 - BACKGROUND, BACKGROUND - 1),
    ]
    if isinstance(params, SamplingParams):
        bounds += [
            ("n", params.n, 1, MOST_SAMPLES),
            ("best_of", params.best_of or 1, 1, MOST_SAMPLES),
            (logprobs, params.logprobs or 0, 0, MOST_LOGPROBS),
            ("prompt_logprobs", params.prompt_logprobs or 0, 0, MOST_LOGPROBS),
        ]
    for name, value, least, most in bounds:
        if not least <= value <= most:
            unit = " prompts" if name == asked.input else ""
            said = f"{name}: expected {least} to {most}{unit} here, got {reprlib.repr(value)}"
            raise RequestError(said, "invalid_value", name)
