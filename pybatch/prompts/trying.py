"""One row through all steps of a prompt, with what the model is asked and says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pybatch.api.inputs import Message, plain_messages
from pybatch.api.protocols.sampling import merged
from pybatch.jobs.rows import Row
from pybatch.prompts.errors import PromptError
from pybatch.prompts.prompt import Prompt

if TYPE_CHECKING:
    from pybatch.api.llm import LLM
    from pybatch.engine import SamplingParams


@dataclass(frozen=True)
class TriedStep:
    """messages: or text that was asked. prompt_tokens: None where no model was loaded. answer: None where none came.
    error: why not."""

    name: str
    messages: str | list[Message]
    prompt_tokens: int | None = None
    answer: str | None = None
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None

    def shown(self) -> list[tuple[str, str]]:
        """The roles and texts of the messages; "" for text."""
        if isinstance(self.messages, str):
            return [("", self.messages)]
        return [(str(each["role"]), str(each["content"])) for each in plain_messages(self.messages)]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def try_rows(prompt: Prompt, row: Row, model: tuple[LLM, SamplingParams] | None) -> list[TriedStep]:
    """The steps of one row, of which each has the answers of those before it; without a model the first one alone.

    Raises PromptError if the row cannot be filled in.
    """
    from pybatch.jobs.checked_rows import for_model
    from pybatch.prompts.rows import PromptRows

    steps: list[TriedStep] = []
    fields = dict(row.fields)
    for number, step in enumerate(prompt.steps):
        (rendered,) = prompt.render_each([fields], number)
        if isinstance(rendered, PromptError):
            raise rendered.of_row(row.index)
        tried = TriedStep(step.name, rendered.messages)
        if model is None:
            return [*steps, tried]
        llm, params = model
        dialect = for_model(PromptRows(of=prompt, step=number), llm.get_tokenizer())
        (ready,) = dialect.prepared(iter([replace(row, fields=fields)]), wait=True)
        request = dialect.request(ready)
        (output,) = llm.generate(list(request.prompts), merged(params, request.params), use_tqdm=False)
        if output.error is not None:
            return [*steps, replace(tried, error=output.error)]
        sample = output.outputs[0]
        tried = replace(
            tried,
            prompt_tokens=len(output.prompt_token_ids or ()),
            answer=sample.text,
            output_tokens=len(sample.token_ids),
            finish_reason=sample.finish_reason,
        )
        steps.append(tried)
        fields[step.name] = sample.text
    return steps
