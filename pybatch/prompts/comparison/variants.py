"""What is compared: a prompt with the model that it runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pybatch.api.llm import LLM, given_to
from pybatch.prompts.loading import FOLDER, load
from pybatch.prompts.prompt import Prompt

Model = str | Path | LLM
GivenPrompt = str | os.PathLike[str] | Prompt


@dataclass(frozen=True)
class Variant:
    """name: that the results have. sampling: fields of SamplingParams that the caller sets over the prompt's own."""

    name: str
    prompt: Prompt
    model: Model
    sampling: Mapping[str, Any] = field(default_factory=dict)

    @property
    def model_name(self) -> str:
        return str(given_to(self.model)["model"] if isinstance(self.model, LLM) else self.model)


def variants_of(
    prompts: Sequence[GivenPrompt],
    models: Sequence[Model],
    default_model: str | Path,
    sampling: Mapping[str, Any],
    folder: str | os.PathLike[str] = FOLDER,
) -> list[Variant]:
    """models: none, which is what a prompt says or the default; one for all; one for each prompt; or several for a
    single prompt. folder: of named prompts.

    Raises ValueError (PromptError for what is wrong with a prompt), OSError.
    """
    loaded = [each if isinstance(each, Prompt) else load(each, folder) for each in prompts]
    if len(loaded) == 1 and len(models) > 1:
        loaded *= len(models)
    chosen: Sequence[Model | None] = models if len(models) > 1 else [*models, None][:1] * len(loaded)
    if len(chosen) != len(loaded):
        raise ValueError(
            f"model: expected one for all, or one for each of the {len(loaded)} prompts, got {len(models)}"
        )
    if len(loaded) < 2:
        raise ValueError("compare: expected two prompts or more, or one prompt and two models or more")
    variants = [
        Variant("", prompt, model or prompt.config.model or default_model, sampling)
        for prompt, model in zip(loaded, chosen, strict=True)
    ]
    return [
        Variant(name, each.prompt, each.model, sampling) for name, each in zip(names(variants), variants, strict=True)
    ]


NAMES: tuple[Callable[[Variant], str], ...] = (
    lambda each: each.prompt.name,
    lambda each: each.prompt.tag,
    lambda each: f"{each.prompt.name}, {Path(each.model_name).name}",
    lambda each: f"{each.prompt.tag}, {each.model_name}",
)
"""A variant's name in as many words as it takes to tell it from the others."""


def names(variants: Sequence[Variant]) -> list[str]:
    for name in NAMES:
        made = [name(each) for each in variants]
        if len(set(made)) == len(made):
            return made
    twice = next(name for name in made if made.count(name) > 1)
    raise ValueError(f"compare: two variants are the same: {twice}")
