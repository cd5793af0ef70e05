"""The command line's flags, in groups that commands share."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, asdict, dataclass, fields, make_dataclass
from functools import partial, wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import typer

from pybatch.api.engine_args import EngineArgs
from pybatch.engine.arguments import described_fields
from pybatch.engine.kv_policies import StreamingLLM, as_json

if TYPE_CHECKING:
    from pybatch.tune.cost import Prices

G = TypeVar("G")


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
            Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=of_group[field.name])
            for group in groups.values()
            for of_group in (get_type_hints(group, include_extras=True),)
            for field in fields(group)
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


def not_empty(value: Any) -> Any:
    """Refuses the empty text that a script's unset variable becomes: as a path it would be the working folder."""
    if value == "" or (isinstance(value, list) and "" in value):
        raise typer.BadParameter("expected a value, got an empty one")
    return value


def option(panel: str, help: str, *names: str, **settings: Any) -> Any:
    """callback: not_empty, unless another or None is given."""
    settings.setdefault("callback", not_empty)
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=False, **settings)


def argument(help: str, metavar: str) -> Any:
    return typer.Argument(help=help, metavar=metavar, callback=not_empty)


sampling = partial(option, "Sampling", callback=None)
engine = partial(option, "Model and engine")
cost = partial(option, "Cost")


def token_biases(text: str) -> dict[int, float]:
    try:
        return {int(token): float(bias) for token, bias in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError):
        raise typer.BadParameter(f"expected JSON such as '{{\"42\": -100}}', got {text!r}") from None


def kept_tokens(text: str) -> dict[str, Any] | None:
    try:
        return as_json(json.loads(text))
    except json.JSONDecodeError:
        raise typer.BadParameter(
            f"expected JSON such as '{json.dumps(as_json(StreamingLLM()))}', got {text!r}"
        ) from None
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def beam_ending(text: str) -> bool | str:
    endings: dict[str, bool | str] = {"true": True, "false": False, "never": "never"}
    if text.lower() not in endings:
        raise typer.BadParameter(f"expected true, false or never, got {text!r}")
    return endings[text.lower()]


def schema_file(path: str) -> str:
    """Its text, which is checked with all parameters."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise typer.BadParameter(f"{path}: {error}") from None


@dataclass
class Given:
    """Flags that are None unless given, so that the library's own defaults apply."""

    def given(self) -> dict[str, Any]:
        """Those that were given, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None and value != []}


@dataclass
class CostFlags:
    """What the machine costs, and what to compare it with."""

    price_per_hour: Annotated[
        float | None, cost("Dollars an hour of the machine, or of all machines together: what the work costs is told.")
    ] = None
    compare_price: Annotated[
        list[str] | None,
        cost(
            "What an API asks, in dollars a million tokens, to compare with; may be repeated.",
            metavar="NAME:IN:OUT",
        ),
    ] = None

    def prices(self) -> Prices:
        """Raises ValueError."""
        from pybatch.tune.cost import Prices

        return Prices.of(self.price_per_hour, self.compare_price or ())


STRUCTURE = {"json_schema": "json", "regex": "regex", "choice": "choice", "grammar": "grammar"}
"""The flags that make up structured_outputs, each with its name there."""


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
    truncate_prompt_tokens: Annotated[
        int | None, sampling("Keep so many of the prompt's last tokens; -1: as many as fit.")
    ] = None
    allowed_token_ids: Annotated[
        list[int] | None, sampling("Sample from these tokens alone; may be repeated.", "--allowed-token-id")
    ] = None
    bad_words: Annotated[
        list[str] | None, sampling("Text that is not to be generated; may be repeated.", "--bad-word")
    ] = None
    kv_policy: Annotated[
        dict[str, Any] | None,
        sampling(
            'Which tokens the KV cache keeps, as JSON: {"type": "streaming_llm", "window": 1024}. Default: all.',
            parser=kept_tokens,
            metavar="JSON",
        ),
    ] = None
    speculate: Annotated[
        bool | None, sampling("Take drafts where the engine speculates. Default: yes.", "--speculate/--no-speculate")
    ] = None
    use_beam_search: Annotated[
        bool | None,
        sampling("Search for the likeliest answers as wholes, with beams.", "--use-beam-search"),
    ] = None
    best_of: Annotated[int | None, sampling("Beams of a beam search. Default: n.")] = None
    length_penalty: Annotated[
        float | None, sampling("Of a beam search: above 0 favours long answers, below 0 short ones. Default: 1.")
    ] = None
    early_stopping: Annotated[
        str | None,
        sampling("When a beam search ends: true, false or never. Default: false.", parser=beam_ending, metavar="TEXT"),
    ] = None
    skip_special_tokens: Annotated[bool | None, sampling("Leave special tokens out of the text. Default: yes.")] = None
    json_schema: Annotated[
        str | None, sampling("File with a JSON schema that answers follow.", parser=schema_file, metavar="FILE")
    ] = None
    regex: Annotated[str | None, sampling("Regular expression that answers match.")] = None
    choice: Annotated[list[str] | None, sampling("Text that an answer may be; to be repeated.")] = None
    grammar: Annotated[
        str | None,
        sampling("File with a grammar, Lark's or GBNF's, that answers follow.", parser=schema_file, metavar="FILE"),
    ] = None

    prompts: ClassVar[Mapping[str, Any]] = {}

    def over(self, prompts: Mapping[str, Any]) -> SamplingFlags:
        """The same flags over what a prompt sets, by the names of SamplingParams."""
        flags = copy(self)
        flags.prompts = prompts  # type: ignore[misc]
        return flags

    def given(self) -> dict[str, Any]:
        """Those that were given, by the names of SamplingParams."""
        given = Given.given(self)
        constraint = {ours: given.pop(flag) for flag, ours in STRUCTURE.items() if flag in given}
        return {**self.prompts, **given, **({"structured_outputs": constraint} if constraint else {})}


def flags_of(
    arguments: type,
    *,
    panel: Callable[..., Any] = engine,
    without: Sequence[str] = (),
    names: Mapping[str, Sequence[str]] | None = None,
) -> Callable[[type[G]], type[G]]:
    """Decorates a group: every field of the dataclass `arguments` becomes a flag with the field's own description.

    panel: makes an option, as `engine` does. names: of flags that have others than the field's. Fields that the group
    has already keep their default.
    """

    def decorate(group: type[G]) -> type[G]:
        flags: list[tuple[str, Any, Any]] = []
        for field in described_fields(arguments):
            if field.name not in without:
                kind, default = flag_type(field.type), getattr(group, field.name, None)
                help = field.help if field.default in (None, MISSING) else f"{field.help} Default: {field.default}."
                flag = panel(help, *(names or {}).get(field.name, ()))
                flags.append((field.name, Annotated[kind if default is not None else kind | None, flag], default))
        return make_dataclass(group.__name__, flags, bases=(group,), namespace={"__doc__": group.__doc__})

    return decorate


def flag_type(hint: Any) -> Any:
    """The type of an argument that is given. Paths, names to choose from and whatever may be text besides
    other types are text here; what may be a list or a mapping is a list."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kinds = tuple(each for each in kinds if get_origin(each) is not Mapping)
    given = {str if each is Path or get_origin(each) is Literal else each for each in kinds} - {NoneType}
    (kind,) = {str} if str in given else given
    return kind


ENGINE_NAMES = {"memory_utilization": ("--memory-utilization", "--gpu-memory-utilization")}


@flags_of(EngineArgs, without=("skip_tokenizer_init", "model"), names=ENGINE_NAMES)
@dataclass
class SharedEngineFlags(Given):
    """The arguments of LLM that several models have."""


@flags_of(EngineArgs, without=("skip_tokenizer_init",), names=ENGINE_NAMES)
@dataclass
class EngineFlags(Given):
    """The arguments of LLM."""

    model: str = "smollm2-135m"
