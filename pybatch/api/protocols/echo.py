"""A prompt that is told before what follows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pybatch.api.inputs import Prompt
from pybatch.api.outcomes import positions
from pybatch.api.protocols.openai_responses import Echo

if TYPE_CHECKING:
    from pybatch.engine import RequestOutput
    from pybatch.model.text.tokenizer import Tokenizer


def echo_of(body: Mapping[str, Any], prompt: Prompt, output: RequestOutput, tokenizer: Tokenizer) -> Echo:
    """Of one of the prompts of a body that completion_request has taken. output: the prompt's first or only one."""
    ids, skip = output.prompt_token_ids, body.get("skip_special_tokens") is not False
    text = prompt if isinstance(prompt, str) else tokenizer.decode(ids, skip)
    hidden = frozenset(tokenizer.all_special_ids) if skip else frozenset[int]()
    if body.get("logprobs") is None:
        return Echo(text, hidden=hidden)
    following = positions((output.prompt_logprobs or [])[1:], tokenizer)
    return Echo(text, [[unpredicted(ids[0], tokenizer)], *following], hidden)


def unpredicted(token: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """A position of a token that none comes before, so that it has no probability."""
    entry: dict[str, Any] = {"token_id": token, "logprob": None, "rank": None}
    return {**entry, "decoded_token": tokenizer.token_text(token), "bytes": list(tokenizer.token_bytes(token))}
