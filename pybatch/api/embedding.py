"""Embeddings and scores: what LLM.embed and LLM.score return; names follow vLLM's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from pybatch.api.inputs import Prompt, is_token_ids
from pybatch.engine import RequestOutput


@dataclass(slots=True)
class EmbeddingOutput:
    """embedding: float32 numbers; none where there is an error."""

    embedding: list[float] = field(repr=False)

    @property
    def hidden_size(self) -> int:
        return len(self.embedding)


@dataclass(slots=True)
class EmbeddingRequestOutput:
    """A prompt's embedding. error, error_code, num_cached_tokens: as RequestOutput's."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True
    error: str | None = None
    error_code: str | None = None

    @classmethod
    def of(cls, output: RequestOutput) -> EmbeddingRequestOutput:
        embedding = [] if output.pooled is None else output.pooled.tolist()
        return cls(
            request_id=output.request_id,
            outputs=EmbeddingOutput(embedding),
            prompt_token_ids=output.prompt_token_ids,
            num_cached_tokens=output.num_cached_tokens,
            error=output.error,
            error_code=output.error_code,
        )


@dataclass(slots=True)
class ScoringOutput:
    """score: how well a document answers a query; not a number where there is an error."""

    score: float


@dataclass(slots=True)
class ScoringRequestOutput:
    """A pair's score. prompt_token_ids: of the pair as the model read it; of two embeddings those of both. error,
    error_code, num_cached_tokens: as RequestOutput's."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: list[int]
    num_cached_tokens: int = 0
    finished: bool = True
    error: str | None = None
    error_code: str | None = None

    @classmethod
    def of(cls, output: RequestOutput) -> ScoringRequestOutput:
        return cls(
            request_id=output.request_id,
            outputs=ScoringOutput(float("nan") if output.pooled is None else float(output.pooled[0])),
            prompt_token_ids=output.prompt_token_ids,
            num_cached_tokens=output.num_cached_tokens,
            error=output.error,
            error_code=output.error_code,
        )

    @classmethod
    def of_embeddings(
        cls, request_id: str, query: EmbeddingRequestOutput, document: EmbeddingRequestOutput
    ) -> ScoringRequestOutput:
        """The cosine of the angle between two embeddings."""
        failed = query if query.error is not None else document
        found = cosine(query.outputs.embedding, document.outputs.embedding) if failed.error is None else float("nan")
        return cls(
            request_id=request_id,
            outputs=ScoringOutput(found),
            prompt_token_ids=query.prompt_token_ids + document.prompt_token_ids,
            num_cached_tokens=query.num_cached_tokens + document.num_cached_tokens,
            error=failed.error,
            error_code=failed.error_code,
        )


def cosine(a: list[float], b: list[float]) -> float:
    x, y = np.array(a), np.array(b)
    return float((x * y).sum() / max(np.sqrt(np.square(x).sum() * np.square(y).sum()), 1e-12))


def with_prompt(prompts: Iterable[Prompt], text: str) -> list[Prompt]:
    """Texts behind one of the model's prompts. Raises ValueError for what is no text."""
    listed = list(prompts)
    if not text:
        return listed
    for prompt in listed:
        if not isinstance(prompt, str):
            raise ValueError(f"prompt_name: expected texts as prompts with it, got {type(prompt).__name__}")
    return [f"{text}{prompt}" for prompt in listed]


def paired(data_1: object, data_2: object) -> tuple[list[str], list[str]]:
    """Queries and as many documents: one query goes with each of several documents."""
    queries, documents = _texts("data_1", data_1), _texts("data_2", data_2)
    if len(queries) == 1:
        queries *= len(documents)
    if len(queries) != len(documents):
        raise ValueError(
            f"data_1: expected one text, or one for each of {len(documents)} documents in data_2, got {len(queries)}"
        )
    return queries, documents


def _texts(name: str, data: object) -> list[str]:
    listed = [data] if isinstance(data, str) else list(data) if isinstance(data, Iterable) else []
    if not listed or is_token_ids(listed) or not all(isinstance(each, str) for each in listed):
        raise TypeError(f"{name}: expected a text or a list of texts, got {data!r:.80}")
    return listed
