"""Bodies of OpenAI's requests for chat completions and completions, with the fields that vLLM takes besides."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Required, TypedDict

from pybatch.api.inputs import Conversation, Message, Prompt, is_token_ids
from pybatch.api.protocols.fields import expect_fields, expect_given, expect_type, flag
from pybatch.api.protocols.generation import Generation
from pybatch.api.protocols.messages import expect_messages, expect_unicode
from pybatch.api.protocols.request_error import RequestError
from pybatch.api.protocols.response_format import StructureFields, constraint_name, structure
from pybatch.api.protocols.sampling import expect_params, token_biases
from pybatch.api.protocols.tool_calls.choice import expect_choice, is_forced
from pybatch.api.vllm_names import ANYTHING
from pybatch.engine.sampling_params import SamplingParams
from pybatch.engine.standing import Standing

SAMPLING = {
    *("max_tokens", "n", "seed", "stop", "temperature", "top_p"),
    *("presence_penalty", "frequency_penalty", "logit_bias"),
    # vLLM's
    *("top_k", "min_p", "min_tokens", "repetition_penalty", "ignore_eos", "stop_token_ids", "bad_words"),
    *("include_stop_str_in_output", "skip_special_tokens", "allowed_token_ids", "truncate_prompt_tokens"),
    *("prompt_logprobs", "use_beam_search", "best_of", "length_penalty", "early_stopping", "speculate"),
    "kv_policy",  # ours
}
"""The fields that SamplingParams has too."""

# By name, the values that change no answer; every other value is refused.
ASKING_NOTHING: dict[str, Collection[Any]] = {
    **SamplingParams.VLLM_ONLY,
    "stream": (False,),
    **dict.fromkeys(("stream_options", "request_id", "cache_salt"), ANYTHING),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "kv_transfer_params": (),
    "vllm_xargs": ({},),
}
CHAT_ASKING_NOTHING: dict[str, Collection[Any]] = {
    **ASKING_NOTHING,
    **dict.fromkeys(("metadata", "store", "service_tier", "safety_identifier", "prediction"), ANYTHING),
    **dict.fromkeys(("prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"), ANYTHING),
    "audio": (),
    "modalities": (["text"],),
    "moderation": (),
    "verbosity": ("medium",),
    "web_search_options": (),
    "functions": ([],),
    "function_call": ("none",),
    "echo": (False,),
    "add_special_tokens": (False,),
    "include_reasoning": (True,),
    "chat_template": (),
    "mm_processor_kwargs": ({},),
}
COMPLETION_ASKING_NOTHING: dict[str, Collection[Any]] = {
    **ASKING_NOTHING,
    "suffix": ("",),
    "add_special_tokens": (True,),
    "prompt_embeds": (),
}


class StandingFields(TypedDict, total=False):
    """Of both: when the request runs, which changes no answer."""

    priority: int | None  # vLLM's
    user: Any
    ttft_target: float | None  # these two are ours
    tpot_target: float | None


class ChatFields(StructureFields, StandingFields, total=False):
    """Of a body for /v1/chat/completions, besides SAMPLING."""

    model: Required[str]
    messages: Required[list[Message]]
    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    tools: list[dict[str, Any]] | None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None
    parallel_tool_calls: bool | None
    # vLLM's
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    documents: list[dict[str, Any]] | None
    chat_template_kwargs: dict[str, Any] | None
    reasoning_effort: Any


class CompletionFields(StructureFields, StandingFields, total=False):
    """Of a body for /v1/completions, besides SAMPLING."""

    model: Required[str]
    prompt: Required[str | list[str] | list[int] | list[list[int]]]
    echo: bool | None
    logprobs: int | None


class StreamFields(TypedDict, total=False):
    """Of both, where the answer may come in pieces."""

    stream: bool | None
    stream_options: dict[str, Any] | None


CHAT = SAMPLING | ChatFields.__annotations__.keys()
COMPLETION = SAMPLING | CompletionFields.__annotations__.keys()

NO_TEMPLATE_VARIABLES = {
    *("messages", "tools", "documents", "chat_template", "add_generation_prompt", "continue_final_message"),
    *("split_special_tokens", "max_tokens"),
}


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a streamed answer reports usage. include_usage: in a last chunk. continuous_usage_stats: in each."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


def split_stream(body: Any) -> tuple[StreamOptions | None, Any]:
    """Whether the answer is to be streamed, and the rest of the body: what is asked is the same either way. Raises
    RequestError."""
    if not isinstance(body, Mapping):
        return None, body  # which chat_request and completion_request refuse
    rest = {name: value for name, value in body.items() if name not in StreamFields.__annotations__}
    given = body.get("stream_options") or {}
    expect_type("stream_options", given, Mapping, "an object")
    values = {}
    for name, value in given.items():
        if name not in STREAM_OPTIONS:
            where = f"stream_options.{name:.80}"
            raise RequestError(f"{where}: unknown parameter", "unknown_parameter", where)
        values[name] = value is not None and expect_type(f"stream_options.{name}", value, bool, "true or false")
    if not flag(body, "stream"):
        return None, rest
    if body.get("prompt_logprobs") is not None:
        raise RequestError("prompt_logprobs: not in a stream", "unsupported_parameter", "prompt_logprobs")
    values.pop("include_obfuscation", None)  # OpenAI's own connections need it
    return StreamOptions(**values), rest


STREAM_OPTIONS = ("include_usage", "continuous_usage_stats", "include_obfuscation")


def chat_request(body: Any) -> Generation:
    """Of a body for /v1/chat/completions. Raises RequestError."""
    expect_fields(body, CHAT, CHAT_ASKING_NOTHING)
    messages = expect_messages(expect_given(body, "messages"))
    params = sampling(body)
    if body.get("max_completion_tokens") is not None:  # the newer name of max_tokens
        params["max_tokens"] = expect_type(
            "max_completion_tokens", body["max_completion_tokens"], int, "an integer of at least 1"
        )
    top = body.get("top_logprobs")
    if flag(body, "logprobs"):
        params["logprobs"] = 0 if top is None else count("top_logprobs", top)
    elif top is not None and top != 0:
        raise RequestError("top_logprobs: expected logprobs = true with it", "invalid_value", "top_logprobs")
    flag(body, "parallel_tool_calls")
    expect_params(params)
    prompt = Conversation(messages, template_options(body))
    named = "tools" if is_forced(body.get("tool_choice")) else constraint_name(body)
    names = {"structured_outputs": named, "logprobs": "top_logprobs"}
    return Generation((prompt,), params, standing(body), names)


def completion_request(body: Any) -> Generation:
    """Of a body for /v1/completions, which may hold several prompts. Raises RequestError."""
    expect_fields(body, COMPLETION, COMPLETION_ASKING_NOTHING)
    prompts = read_prompts(expect_given(body, "prompt"))
    params = sampling(body)
    if body.get("logprobs") is not None:
        params["logprobs"] = count("logprobs", body["logprobs"])
    if flag(body, "echo"):
        if "logprobs" in params:
            params.setdefault("prompt_logprobs", params["logprobs"])
        if only_echo(body):
            params["max_tokens"] = 1  # of which nothing is told
    expect_params(params)
    return Generation(prompts, params, standing(body), {"structured_outputs": constraint_name(body)})


def only_echo(body: Mapping[str, Any]) -> bool:
    """Whether the prompt alone is wanted, without a token of output."""
    return body.get("echo") is True and type(body.get("max_tokens")) is int and body["max_tokens"] == 0


def standing(body: Mapping[str, Any]) -> Standing:
    """When it is to run: vLLM's priority, OpenAI's user, and the targets that are ours."""
    given = {name: body[name] for name in StandingFields.__annotations__ if body.get(name) is not None}
    user = given.get("user")
    if not isinstance(user, str) or not user:  # which would be OpenAI's to refuse
        given.pop("user", None)
    try:
        return Standing(**given)
    except ValueError as error:
        raise RequestError(str(error), "invalid_type", str(error).partition(":")[0]) from None


def sampling(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SamplingParams that have values; null asks for the default."""
    params = {name: body[name] for name in SAMPLING & body.keys() if body[name] is not None}
    if "logit_bias" in params:
        params["logit_bias"] = token_biases(params["logit_bias"])
    return params | structure(body)


def count(name: str, value: Any) -> int:
    """A number of log-probabilities."""
    number: int = expect_type(name, value, int, "an integer of at least 0")
    if number < 0:
        raise RequestError(f"{name}: expected an integer of at least 0, got {number}", "invalid_value", name)
    return number


def template_options(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the chat template gets besides the messages."""
    options: dict[str, Any] = {}
    if body.get("tools"):
        tools = functions(body["tools"])
        if body.get("tool_choice") != "none":
            options["tools"] = tools
    expect_choice(body)
    if body.get("documents"):
        options["documents"] = objects("documents", body["documents"])
    for name in ("add_generation_prompt", "continue_final_message"):
        if body.get(name) is not None:
            options[name] = flag(body, name)
    if body.get("reasoning_effort") is not None:
        options["reasoning_effort"] = body["reasoning_effort"]
    variables = body.get("chat_template_kwargs") or {}
    expect_type("chat_template_kwargs", variables, Mapping, "an object")
    for name in variables.keys() & NO_TEMPLATE_VARIABLES:
        where = f"chat_template_kwargs.{name}"
        raise RequestError(f"{where}: no variable of the template", "invalid_value", where)
    return {**options, **variables}


def functions(value: Any) -> list[Mapping[str, Any]]:
    """Tools, none of which is run here, or called with anything but JSON."""
    tools = objects("tools", value)
    for number, tool in enumerate(tools):
        if tool.get("type") not in (None, "function"):
            where = f"tools[{number}].type"
            said = f"{where}: not supported here; expected 'function', got {tool['type']!r:.80}"
            raise RequestError(said, "unsupported_parameter", where)
    return tools


def objects(name: str, value: Any) -> list[Mapping[str, Any]]:
    items: list[Mapping[str, Any]] = expect_type(name, value, list, "a list of objects")
    for item in items:
        expect_type(name, item, Mapping, "a list of objects")
    return items


def read_prompts(prompt: Any, name: str = "prompt") -> tuple[Prompt, ...]:
    """Text, token ids, or a list of texts or of lists of token ids."""
    if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and is_token_ids(prompt)):
        prompts = [prompt]
    else:
        prompts = expect_type(name, prompt, list, "text, token ids or a list of these")
        if not prompts:
            raise RequestError(f"{name}: expected at least one, got []", "invalid_value", name)
    for each in prompts:
        if isinstance(each, str):
            expect_unicode(name, each)
        elif not isinstance(each, list) or not each or not is_token_ids(each) or min(each) < 0:
            raise RequestError(f"{name}: expected text, token ids or a list of these", "invalid_type", name)
    return tuple(prompts)
