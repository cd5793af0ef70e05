"""What runs for one request, and the answer that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pybatch.api.embedding import cosine
from pybatch.api.inputs import Prompt
from pybatch.api.outcomes import Answer, Failure, JoinedAnswer, Outcome, first_failure, joined
from pybatch.engine.pooling_params import Params, PoolingParams


@dataclass(frozen=True, slots=True)
class RequestPlan:
    """prompts: each runs by itself, with the same params. compared: of each pair that is scored the numbers of the two
    prompts whose embeddings are compared; None where each prompt has an answer of its own."""

    prompts: Sequence[Prompt]
    params: Params
    compared: Sequence[tuple[int, int]] | None = None

    def failure(self, outcomes: Sequence[Outcome | None]) -> Failure | None:
        """Why the request has no answer. outcomes: of the prompts; None of those that have none so far."""
        if self.compared is not None:
            of_pairs = [
                outcomes[query] if isinstance(outcomes[query], Failure) else outcomes[document]
                for query, document in self.compared
            ]
            return first_failure(of_pairs, "pair")
        scored = isinstance(self.params, PoolingParams) and self.params.task == "score"
        return first_failure(outcomes, "pair" if scored else "prompt")

    def answer(self, answers: Sequence[Answer]) -> Answer:
        """answers: to the prompts. Of several prompts a JoinedAnswer, whose parts are the prompts' or the pairs'; each
        prompt's tokens count once."""
        if self.compared is None:
            return joined(answers)
        parts = [_compared(answers[query], answers[document]) for query, document in self.compared]
        return JoinedAnswer(sum(answer.prompt_tokens for answer in answers), (), parts=tuple(parts))


def _compared(query: Answer, document: Answer) -> Answer:
    assert query.pooled is not None
    assert document.pooled is not None
    return Answer(query.prompt_tokens + document.prompt_tokens, (), pooled=[cosine(query.pooled, document.pooled)])
