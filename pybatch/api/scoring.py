"""How a model judges a document for a query, and what it reads to do so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pybatch.api.embedding import EmbeddingRequestOutput, ScoringRequestOutput, with_prompt
from pybatch.api.inputs import Conversation, Encoded, Prompt, expect_tokenizer, fault_of
from pybatch.api.outcomes import Failure
from pybatch.api.pairs import FramedText, JoinedTexts, Pair
from pybatch.api.request_plan import RequestPlan
from pybatch.engine import Engine, RequestOutput
from pybatch.engine.pooling_params import Params, PoolingParams
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
class Scorer:
    """How one model scores, which is all that must be known of it to make prompts of pairs.

    has_head: it has one to score by. compares: it has none, and its files say how it embeds: the embeddings of query
    and document are compared. names_labels: its files name the tokens of its answer. prompt: what comes in front of
    each text that is embedded. max_model_len: in tokens.
    """

    has_head: bool
    compares: bool
    names_labels: bool
    prompt: str
    max_model_len: int

    @classmethod
    def of(cls, engine: Engine) -> Scorer:
        has_head = engine.decoder.score is not None
        return cls(
            has_head=has_head,
            compares=not has_head and (engine.pooling.stated or not engine.decoder.config.generates),
            names_labels=engine.pooling.labels is not None,
            prompt=engine.pooling.prompt(None),
            max_model_len=engine.max_model_len,
        )

    def plan(
        self,
        tokenizer: Tokenizer | None,
        pairs: Iterable[Pair],
        params: PoolingParams,
        *,
        instruction: str | None = None,
        chat_template: str | None = None,
    ) -> RequestPlan:
        """What runs for the scores of pairs.

        With chat_template, or if the checkpoint names the tokens of its answer, each pair is messages of the roles
        query and document (and system, with the instruction) through the template. Else a model with a head of its own
        reads both texts as its tokenizer joins pairs, and others the question that Qwen3-Reranker is trained on. Each
        text that is embedded runs once. Raises ValueError for what cannot be had.

        params: truncate_prompt_tokens cuts the end of query and document so that the whole has so many tokens, -1: as
        the context holds; of embeddings it cuts each text.
        """
        if self.compares:
            if instruction is not None or chat_template is not None:
                raise ValueError("instruction, chat_template: expected none for a model that compares embeddings")
            listed = [(pair.query, pair.document) for pair in pairs]
            texts = {
                text: number for number, text in enumerate(dict.fromkeys(text for pair in listed for text in pair))
            }
            compared = [(texts[query], texts[document]) for query, document in listed]
            return RequestPlan(with_prompt(texts, self.prompt), replace(params, task="embed"), compared)
        tokenizer = expect_tokenizer(tokenizer)
        room = self.max_model_len if params.truncate_prompt_tokens == -1 else params.truncate_prompt_tokens
        params = replace(params, task="score", truncate_prompt_tokens=None)
        prompts: Sequence[Prompt]
        if chat_template is not None or (self.names_labels and tokenizer.chat_template is not None):
            if room is not None:
                raise ValueError("truncate_prompt_tokens: expected none where a chat template reads the pair")
            prompts = [_conversation(pair, instruction, chat_template) for pair in pairs]
        elif self.has_head and instruction is None:
            prompts = [JoinedTexts(pair.query, pair.document, room) for pair in pairs]
        else:
            before, after = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (BEFORE, AFTER))
            question = instruction or INSTRUCTION
            prompts = [
                FramedText(before, PAIR.format(question, pair.query, pair.document), after, room) for pair in pairs
            ]
        return RequestPlan(prompts, params)


def planned(
    prompts: Sequence[Prompt], pairs: Sequence[Pair], params: Params, scorer: Scorer, tokenizer: Tokenizer | None
) -> RequestPlan | Failure:
    """What runs for a request, which has prompts or pairs, or why nothing can."""
    if not isinstance(params, PoolingParams) or params.task != "score":
        return RequestPlan(prompts, params)
    refused = Encoded()
    with fault_of(refused):
        return scorer.plan(tokenizer, pairs, params)
    return Failure(refused.error or "", refused.error_code or "invalid_request")


def scores(plan: RequestPlan, outputs: Sequence[RequestOutput]) -> list[ScoringRequestOutput]:
    """outputs: of the plan's prompts."""
    if plan.compared is None:
        return [ScoringRequestOutput.of(output) for output in outputs]
    embedded = [EmbeddingRequestOutput.of(output) for output in outputs]
    return [
        ScoringRequestOutput.of_embeddings(str(i), embedded[query], embedded[document])
        for i, (query, document) in enumerate(plan.compared)
    ]


def _conversation(pair: Pair, instruction: str | None, chat_template: str | None) -> Conversation:
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    messages = [*system, {"role": "query", "content": pair.query}, {"role": "document", "content": pair.document}]
    return Conversation(messages, {"chat_template": chat_template} if chat_template else {})
