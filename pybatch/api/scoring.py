"""How a model judges a document for a query, and what it reads to do so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pybatch.api.embedding import EmbeddingRequestOutput, ScoringRequestOutput, with_prompt
from pybatch.api.inputs import Conversation, Prompt, expect_tokenizer
from pybatch.engine import Engine, RequestOutput
from pybatch.engine.pooling_params import PoolingParams
from pybatch.model.text.tokenizer import Tokenizer

# As the models of Qwen3-Reranker were trained to be asked.
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
BEFORE = (
    "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
    'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
)
PAIR = "<Instruct>: {}\n<Query>: {}\n<Document>: {}"
AFTER = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


def label_tokens(tokenizer: Tokenizer | None) -> tuple[int, int] | None:
    """Those for yes and no, if there is one for each."""
    if tokenizer is None:
        return None
    yes, no = (tokenizer.encode(word, add_special_tokens=False) for word in ("yes", "no"))
    return (yes[0], no[0]) if len(yes) == len(no) == 1 else None


@dataclass(frozen=True, slots=True)
class Scoring:
    """What is to be run for scores, and what comes of it. compared: of each pair the numbers of the two prompts whose
    embeddings are compared; None where each prompt is a pair."""

    prompts: Sequence[Prompt]
    params: PoolingParams
    compared: Sequence[tuple[int, int]] | None = None

    def results(self, outputs: Sequence[RequestOutput]) -> list[ScoringRequestOutput]:
        """outputs: of the prompts."""
        if self.compared is None:
            return [ScoringRequestOutput.of(output) for output in outputs]
        embedded = [EmbeddingRequestOutput.of(output) for output in outputs]
        return [
            ScoringRequestOutput.of_embeddings(str(i), embedded[query], embedded[document])
            for i, (query, document) in enumerate(self.compared)
        ]


def scoring(
    engine: Engine,
    tokenizer: Tokenizer | None,
    pairs: Sequence[tuple[str, str]],
    params: PoolingParams,
    *,
    instruction: str | None = None,
    chat_template: str | None = None,
    truncate: int | None = None,
) -> Scoring:
    """Of queries and documents. A model embeds them if its files say how, and it has no head to score by; others read
    pair by pair (see pair_prompts)."""
    if engine.decoder.score is None and (engine.pooling.stated or not engine.decoder.config.generates):
        if truncate is not None:
            params = replace(params, truncate_prompt_tokens=truncate)
        texts = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
        return Scoring(
            with_prompt(texts, engine.pooling.prompt(None)),
            replace(params, task="embed"),
            [(texts[query], texts[document]) for query, document in pairs],
        )
    prompts = pair_prompts(
        engine, tokenizer, pairs, instruction=instruction, chat_template=chat_template, truncate=truncate
    )
    return Scoring(prompts, replace(params, task="score"))


def pair_prompts(
    engine: Engine,
    tokenizer: Tokenizer | None,
    pairs: Sequence[tuple[str, str]],
    *,
    instruction: str | None = None,
    chat_template: str | None = None,
    truncate: int | None = None,
) -> list[Prompt]:
    """What the model reads of each query and document.

    With chat_template, or if the checkpoint names the tokens of its answer, messages of the roles query and document
    (and system, with the instruction) through the template. Else for a model with a head of its own both texts as its
    tokenizer joins pairs, and for others the question that Qwen3-Reranker is trained on.

    truncate: cut the end of query and document so that the whole has so many tokens; -1: as the context holds.
    """
    tokenizer = expect_tokenizer(tokenizer)
    room = engine.max_model_len if truncate == -1 else truncate
    if chat_template is not None or (engine.pooling.labels is not None and tokenizer.chat_template is not None):
        return [_conversation(query, document, instruction, chat_template) for query, document in pairs]
    if engine.decoder.score is not None and instruction is None:
        return [_cut(tokenizer.backend.encode(*pair).ids, [], room) for pair in pairs]
    encode: Callable[[str], list[int]] = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    before, after = encode(BEFORE), encode(AFTER)
    return [
        before
        + _cut(
            tokenizer.encode(
                PAIR.format(instruction or INSTRUCTION, *pair), add_special_tokens=False, split_special_tokens=True
            ),
            after,
            None if room is None else room - len(before),
        )
        for pair in pairs
    ]


def _conversation(query: str, document: str, instruction: str | None, chat_template: str | None) -> Conversation:
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    messages = [*system, {"role": "query", "content": query}, {"role": "document", "content": document}]
    return Conversation(messages, {"chat_template": chat_template} if chat_template else {})


def _cut(ids: list[int], after: list[int], room: int | None) -> list[int]:
    return ids + after if room is None else ids[: max(0, room - len(after))] + after
