"""Templates with {field} where a row's field goes."""

from __future__ import annotations

from collections.abc import Mapping

from pybatch.api.inputs import Message
from pybatch.jobs.dialects.template import Template, TemplateError
from pybatch.prompts.blocks import split, unescaped
from pybatch.prompts.errors import PromptError, Text
from pybatch.prompts.rendering import Row, RowTemplate


class PlainTemplate(RowTemplate):
    optional: tuple[str, ...] = ()
    files: Mapping[str, str] = {}

    def __init__(self, text: Text) -> None:
        """Raises PromptError."""
        self._blocks = [(role, compiled(part)) for role, part in split(text)]
        self.variables = tuple(dict.fromkeys(name for _, block in self._blocks for name in block.fields))

    def _fill(self, row: Row) -> str | list[Message]:
        try:
            filled = [(role, block.fill(row).strip()) for role, block in self._blocks]
        except (ValueError, RecursionError) as error:  # a value that JSON does not have
            raise PromptError(str(error)) from None
        if filled[0][0] is None:
            return filled[0][1]
        return [{"role": role, "content": text} for role, text in filled]


def compiled(text: Text) -> Template:
    try:
        template = Template(text.text)
    except TemplateError as error:
        raise text.error(str(error), error.offset) from None
    template.parts = [(unescaped(literal), name) for literal, name in template.parts]
    return template
