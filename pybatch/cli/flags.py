"""The command line's flags, in groups that commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer


def takes(**groups: type) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorates a command: the fields of each group, a dataclass, become its options, and the argument of the group's
    name gets an instance."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            each.replace(annotation=hints[name])
            for name, each in signature(command).parameters.items()
            if name not in groups
        ]
        options = [
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hint)
            for group in groups.values()
            for field, hint in zip(fields(group), get_type_hints(group, include_extras=True).values(), strict=True)
        ]

        @wraps(command)
        def with_groups(**values: Any) -> None:
            made = {
                name: group(**{field.name: values.pop(field.name) for field in fields(group)})
                for name, group in groups.items()
            }
            command(**values, **made)

        with_groups.__signature__ = Signature([*own, *options])  # type: ignore[attr-defined]
        return with_groups

    return decorate


def option(panel: str, help: str, *names: str, **settings: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


sampling = partial(option, "Sampling")
engine = partial(option, "Model and engine")


def token_biases(text: str) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise typer.BadParameter(f"expected JSON such as '{{\"42\": -100}}', got {text!r}") from None


@dataclass
class Given:
    """Flags that leave what is not given to the library's own defaults."""

    def given(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != []}


@dataclass
class SamplingFlags(Given):
    """The arguments of SamplingParams."""

    max_tokens: Annotated[int | None, sampling("Tokens to generate at most. Default: until the context is full.")] = (
        None
    )
    temperature: Annotated[float | None, sampling("0 takes the likeliest token. Default: 1.")] = None
    top_p: Annotated[float | None, sampling("Sample from the likeliest tokens of this total probability.")] = None
    top_k: Annotated[int | None, sampling("Sample from this many of the likeliest tokens.")] = None
    min_p: Annotated[float | None, sampling("Leave out tokens below this share of the likeliest one's.")] = None
    n: Annotated[int | None, sampling("Samples of each prompt. Default: 1.", "-n", "--n")] = None
    stop: Annotated[list[str] | None, sampling("Text that ends the answer; may be repeated.")] = None
    stop_token_ids: Annotated[
        list[int] | None, sampling("Token id that ends the answer; may be repeated.", "--stop-token-id")
    ] = None
    include_stop_str_in_output: Annotated[
        bool | None, sampling("Keep the text that ended the answer.", "--include-stop-str-in-output")
    ] = None
    ignore_eos: Annotated[bool | None, sampling("Go on past the model's own end.", "--ignore-eos")] = None
    min_tokens: Annotated[int | None, sampling("No end before so many tokens.")] = None
    presence_penalty: Annotated[float | None, sampling("-2 to 2, on tokens that the answer has.")] = None
    frequency_penalty: Annotated[float | None, sampling("-2 to 2, on tokens for each time the answer has them.")] = None
    repetition_penalty: Annotated[
        float | None, sampling("Above 1: fewer tokens that prompt or answer have. Default: 1.")
    ] = None
    logit_bias: Annotated[
        dict[int, float] | None,
        sampling("Added to tokens' logits, as JSON by token id.", parser=token_biases, metavar="JSON"),
    ] = None
    logprobs: Annotated[int | None, sampling("Report log-probabilities of the token and so many others.")] = None
    prompt_logprobs: Annotated[int | None, sampling("The same for the prompt's tokens.")] = None
    skip_special_tokens: Annotated[bool | None, sampling("Leave special tokens out of the text. Default: yes.")] = None


@dataclass
class EngineFlags(Given):
    """The arguments of LLM."""

    model: Annotated[
        str,
        typer.Option(
            help="Model directory or hub name (safetensors), GGUF file, or smollm2-135m.",
            rich_help_panel="Model and engine",
        ),
    ] = "smollm2-135m"
    tokenizer: Annotated[str | None, engine("Where to take the tokenizer from, if not from the model.")] = None
    dtype: Annotated[str | None, engine("auto, float32, bfloat16 or float16.")] = None
    quantization: Annotated[
        str | None, engine("int8 (weights and activations), int8-weight-only or gguf (a GGUF file's own bits).")
    ] = None
    device: Annotated[str | None, engine("cpu, cuda or cuda:N. Default: a GPU if there is one.")] = None
    kv_cache_dtype: Annotated[str | None, engine("auto, float32, bfloat16, float16, int8 or, on a GPU, fp8.")] = None
    max_model_len: Annotated[int | None, engine("Tokens of prompt and answer together. Default: the context.")] = None
    max_num_seqs: Annotated[int | None, engine("The most sequences in one step.")] = None
    max_num_batched_tokens: Annotated[int | None, engine("The most tokens in one step.")] = None
    block_size: Annotated[int | None, engine("Tokens in a KV block: 8, 16, 32 or 64.")] = None
    memory_utilization: Annotated[
        float | None,
        engine("Share of free memory for the KV pool.", "--memory-utilization", "--gpu-memory-utilization"),
    ] = None
    num_kv_blocks: Annotated[int | None, engine("The KV pool's size in blocks, given outright.")] = None
    enable_prefix_caching: Annotated[bool | None, engine("Prompts that begin alike share KV blocks. Default: yes.")] = (
        None
    )
    policy: Annotated[str | None, engine("Batching policy: continuous, static, dynamic or micro.")] = None
    seed: Annotated[int | None, engine("Of the random draws. Default: 0.")] = None
    threads: Annotated[int | None, engine("Default: OMP_NUM_THREADS, else the physical cores.")] = None
