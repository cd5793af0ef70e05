"""A job's rows, read once to see what they hold and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pybatch.api.lora_names import Modules, named_adapters
from pybatch.jobs.check import Checked, CheckedAsRead, check_rows
from pybatch.jobs.dialect import Dialect
from pybatch.jobs.dialects.choose import dialect_of
from pybatch.jobs.dialects.plain import PlainDialect
from pybatch.jobs.dialects.template import Template
from pybatch.jobs.rows import Source
from pybatch.jobs.sources.peeked import peek

if TYPE_CHECKING:
    from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class RowOptions:
    """How rows become prompts.

    format: one of DIALECTS; None: what the first row is. prompt_template: text with {field} where a row's field goes.
    system: a system message in front of every conversation. raw: the model completes text as it is, without its chat
    template. output: the fields of a result, each with a template that is filled in with the row's fields and those of
    its answer; None: all of these. lora_modules: as EngineArgs', whose names a row's model may be.
    """

    format: str | None = None
    prompt_template: str | None = None
    system: str | None = None
    raw: bool = False
    output: Mapping[str, str] | None = None
    lora_modules: Modules = None

    def dialect(self, source: Source, created: int) -> tuple[Dialect, Source]:
        """And the source, of which a stream's first row has been looked at. created: as of dialect_of."""
        template = None if self.prompt_template is None else Template(self.prompt_template)
        output = None if self.output is None else {name: Template(text) for name, text in self.output.items()}
        first: dict[str, Any] = {}
        if template is None:
            first, source = peek(source)
        made = dialect_of(
            self.format,
            first,
            created=created,
            template=template,
            system=self.system,
            chat=not self.raw,
            output=output,
            adapters=named_adapters(self.lora_modules),
        )
        return made, source

    def fingerprint(self) -> dict[str, Any]:
        """Of what answers depend on; lora_modules are the engine's too, and are told of by what is in them."""
        given = asdict(replace(self, lora_modules=None))
        return {name: value for name, value in given.items() if value not in (None, False)}


@dataclass(frozen=True)
class CheckedRows:
    """Rows, what they hold, and what a look at each has found. options: how they were read."""

    source: Source
    dialect: Dialect
    checked: Checked
    options: RowOptions


def check_input(source: Source, options: RowOptions, *, sampling: Mapping[str, Any], created: int) -> CheckedRows:
    """Looks at every row of a source that can be read twice.

    sampling: the arguments of SamplingParams that were given. created: the date in results that bear one, in seconds
    since 1970. Raises ValueError for wrong options, OSError if the rows cannot be read.
    """
    from pybatch.engine import SamplingParams

    params = SamplingParams(**{"max_tokens": None, **sampling})
    dialect, source = options.dialect(source, created)
    checked = check_rows(source, dialect, params) if source.rereadable else CheckedAsRead()
    return CheckedRows(source, dialect, checked, options)


def for_model(dialect: Dialect, tokenizer: Tokenizer | None) -> Dialect:
    """Text is no user's message for a model without a chat template, which completes it as it is."""
    if isinstance(dialect, PlainDialect) and dialect.chat and (tokenizer is None or tokenizer.chat_template is None):
        if dialect.system is not None:
            raise ValueError("system: the model has no chat template, which a system message needs")
        return replace(dialect, chat=False)
    return dialect
