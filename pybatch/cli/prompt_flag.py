"""pybatch run --prompt: what a prompt makes of the other flags, and of the rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from pybatch.cli import exit_codes
from pybatch.cli.answering import tell
from pybatch.cli.command import CommandError, is_given, usage_errors

if TYPE_CHECKING:
    from pybatch.cli.flags import EngineFlags, SamplingFlags
    from pybatch.jobs.checked_rows import CheckedRows, RowOptions
    from pybatch.prompts import Prompt


def with_prompt(
    prompt: str, options: RowOptions, engine: EngineFlags, sampling: SamplingFlags, context: typer.Context
) -> tuple[RowOptions, EngineFlags, SamplingFlags]:
    """What a prompt makes of the flags, which go before what it says itself."""
    from pybatch.prompts import load
    from pybatch.prompts.rows import PromptOptions

    with usage_errors():
        loaded = load(prompt)
    engine = with_model(loaded, engine, context)
    given = options.format, options.prompt_template, options.system, options.raw
    own = PromptOptions(*given, lora_modules=options.lora_modules, prompt=loaded)
    return own, engine, sampling.over(loaded.config.sampling)


def with_model(prompt: Prompt, engine: EngineFlags, context: typer.Context) -> EngineFlags:
    """The prompt's model, where no other is given."""
    model = prompt.config.model
    return engine if model is None or is_given(context, "model") else replace(engine, model=model)


def expect_some_good(checked: CheckedRows) -> None:
    """Raises CommandError where no row can be answered, for which no model need be loaded."""
    found = checked.checked
    if found.rows and found.bad.total() == found.rows:
        for line in found.lines():
            tell(line)
        raise CommandError("no row can be answered: nothing has run", exit_codes.FAILED_ROWS)
