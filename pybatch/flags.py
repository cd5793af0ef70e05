"""The command line's flags, in groups that commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from functools import wraps
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


def sampling(help: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Sampling", show_default=False, **options)


def engine(help: str, *names: str, **options: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel="Model and engine", show_default=False, **options)


@dataclass
class Given:
    """Flags whose default is what the library's own is."""

    def given(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != []}


@dataclass
class SamplingFlags(Given):
    """SamplingParams' arguments."""

    max_tokens: Annotated[int | None, sampling("Tokens to generate at most. [default: until the context is full]")] = None
    temperature: Annotated[float | None, sampling("0 is greedy. [default: 1]")] = None
    top_p: Annotated[float | None, sampling("Sample from the likeliest tokens of this total probability.")] = None
    top_k: Annotated[int | None, sampling("Sample from this many of the likeliest tokens.")] = None
    min_p: Annotated[float | None, sampling("Leave out tokens below this share of the likeliest one's.")] = None
    n: Annotated[int | None, sampling("Samples of each prompt. [default: 1]", "-n", "--n")] = None
    stop: Annotated[list[str] | None, sampling("Text that ends the answer; may be given several times.")] = None
    stop_token_ids: Annotated[list[int] | None, sampling("Token that ends the answer; may be given several times.")] = None
    include_stop_str_in_output: Annotated[
        bool | None, sampling("Keep the stop text.", "--include-stop-str-in-output")
    ] = None
    ignore_eos: Annotated[bool | None, sampling("Go on past the model's end of text.", "--ignore-eos")] = None
    min_tokens: Annotated[int | None, sampling("No end before so many tokens.")] = None
    presence_penalty: Annotated[float | None, sampling("-2 to 2, for tokens in the answer so far.")] = None
    frequency_penalty: Annotated[float | None, sampling("-2 to 2, for each time they are in it.")] = None
    repetition_penalty: Annotated[float | None, sampling("Above 1 for fewer repetitions. [default: 1]")] = None
    logit_bias: Annotated[
        dict[int, float] | None, sampling("Added to a token's logit, as JSON: '{\"42\": -100}'.", parser=parse_bias)
    ] = None
    logprobs: Annotated[int | None, sampling("Log-probabilities of so many of the likeliest tokens.")] = None
    prompt_logprobs: Annotated[int | None, sampling("The same for the prompt's tokens.")] = None
