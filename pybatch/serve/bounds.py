"""The most that one request, or one row of a batch, may ask for."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from pybatch.api.inputs import Conversation, Prompt
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.request_error import RequestError
from pybatch.engine import SamplingParams
from pybatch.engine.pooling_params import Params
from pybatch.engine.standing import BACKGROUND
from pybatch.jobs.dialect import RowRequest

MOST_SAMPLES = 128  # of each prompt; OpenAI's limit
MOST_PROMPTS = 2048
MOST_MESSAGES = 1 << 14
MOST_LOGPROBS = 20  # at each position, as in vLLM
MOST_TEXTS, MOST_CHARACTERS = 256, 1 << 14  # of stop strings, and of bad words

Asked = Generation | RowRequest


def expect_few(asked: Asked, vocab_size: int, most_requests: float = MOST_PROMPTS) -> None:
    """Raises RequestError for more prompts, messages, stop strings and the like than the server takes: they are
    rendered, and looked for with each token, on threads that all requests share. most_requests: the engine's."""
    name, most = asked.names.get("prompt", "prompt"), int(min(MOST_PROMPTS, most_requests))
    count = max(len(asked.prompts), len(asked.pairs))
    if not 1 <= count <= most:
        raise RequestError(f"{name}: expected 1 to {most} prompts here, got {count}", "invalid_value", name)
    for prompt in asked.prompts:
        expect_few_messages(prompt)
    expect_short_lists(asked.params, vocab_size, asked.names)


def expect_few_messages(prompt: Prompt) -> None:
    if isinstance(prompt, Conversation) and len(prompt.messages) > MOST_MESSAGES:
        said = f"messages: expected at most {MOST_MESSAGES:,}, got {len(prompt.messages):,}"
        raise RequestError(said, "invalid_value", "messages")


def expect_short_lists(params: Mapping[str, Any], vocab_size: int, names: Mapping[str, str]) -> None:
    """params: of SamplingParams. names: as Generation's."""
    for given in ("stop", "bad_words"):
        texts = params.get(given) or ()
        texts = (texts,) if isinstance(texts, str) else texts
        if len(texts) > MOST_TEXTS or sum(map(len, texts)) > MOST_CHARACTERS:
            name = names.get(given, given)
            said = f"{name}: expected at most {MOST_TEXTS} texts here, of {MOST_CHARACTERS:,} characters together"
            raise RequestError(said, "invalid_value", name)
    for given in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        if len(params.get(given) or ()) > vocab_size:
            said = f"{given}: expected at most the {vocab_size:,} tokens of the vocabulary"
            raise RequestError(said, "invalid_value", given)


def expect_bounded(asked: Asked, params: Params) -> None:
    """Raises RequestError for larger numbers than the server takes. params: with the defaults."""
    bounds = [("priority", asked.standing.priority, 1 - BACKGROUND, BACKGROUND - 1)]
    if isinstance(params, SamplingParams):
        bounds += [
            ("n", params.n, 1, MOST_SAMPLES),
            ("best_of", params.best_of or 1, 1, MOST_SAMPLES),
            ("logprobs", params.logprobs or 0, 0, MOST_LOGPROBS),
            ("prompt_logprobs", params.prompt_logprobs or 0, 0, MOST_LOGPROBS),
        ]
    for given, value, least, most in bounds:
        if not least <= value <= most:
            name = asked.names.get(given, given)
            said = f"{name}: expected {least} to {most} here, got {reprlib.repr(value)}"
            raise RequestError(said, "invalid_value", name)
