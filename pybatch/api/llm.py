"""LLM: many prompts through one model, with vLLM's offline interface."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import fields, replace
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from pybatch.api.beam_search import BeamSearchOutput, BeamSearchParams
from pybatch.api.call import run_requests
from pybatch.api.embedding import EmbeddingRequestOutput, ScoringRequestOutput, paired, with_prompt
from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Conversation, Message, Prompt, as_conversations, as_prompts, chat_options, size_of
from pybatch.api.lora_names import Adapters, adapters_of, with_adapters
from pybatch.api.model_handle import ModelHandle
from pybatch.api.pairs import Pair
from pybatch.api.pinned_prefix import PinnedPrefix, pin_prefix
from pybatch.api.progress import BatchProgress
from pybatch.api.progress_reporter import ProgressReporter
from pybatch.api.scoring import scores
from pybatch.api.standings import ForEach, standings
from pybatch.api.vllm_names import refuse
from pybatch.engine import RequestOutput, SamplingParams
from pybatch.engine.arguments import expect_known
from pybatch.engine.pooling_params import Params, PoolingParams

logger = logging.getLogger(__name__)

Sampling = SamplingParams | Iterable[SamplingParams] | None
Pooling = PoolingParams | Iterable[PoolingParams] | None

_ORDINARY: Iterable[dict[str, Any]] = itertools.repeat({})  # standings


def generate(prompts: Prompt | Iterable[Prompt], model: str | Path, **arguments: Any) -> list[RequestOutput]:
    """Loads the model, answers the prompts and returns the outputs in their order.

    arguments: those of LLM and of SamplingParams, by name; ``seed`` is LLM's, and without ``max_tokens`` an output may
    fill the context. For more than one call keep an LLM.
    """
    of_llm, of_params = split_arguments("generate", arguments, loaded=False)
    SamplingParams(**{"max_tokens": None, **of_params})  # errors show before the model loads
    llm = LLM(model, **of_llm)
    params = replace(llm.get_default_sampling_params(), **of_params)
    return llm.generate(prompts, params)


class LLM(ModelHandle):
    """A loaded model with its engine.

    Takes the arguments of EngineArgs: ``help(pybatch.EngineArgs)``.

    A prompt that cannot be run (too long, empty, not a prompt) never stops the others: its RequestOutput has ``error``
    set, and one completion without text whose finish_reason is "error"; a warning is logged. This holds for a single
    prompt too. Ctrl-C raises KeyboardInterrupt after the step under way and aborts the requests of the call; the LLM
    stays usable.

    Threads may share an LLM: their requests run in one batch, and each call gets its own outputs. Processes cannot:
    pickling or copying an LLM raises TypeError.
    """

    def generate(
        self,
        prompts: Prompt | Iterable[Prompt] | None = None,
        sampling_params: Sampling = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapters = None,
        priority: ForEach[int] = None,
        *,
        user: ForEach[str] = None,
        ttft_target: ForEach[float] = None,
        tpot_target: ForEach[float] = None,
        prompt_token_ids: Sequence[int] | Iterable[Sequence[int]] | None = None,
        tokenization_kwargs: None = None,
    ) -> list[RequestOutput]:
        """Answers every prompt. Returns the outputs in the order of the prompts; request_id is the index, from 0.

        prompts: one or several of: text, a list of token ids, {"prompt": text}, {"prompt_token_ids": ids}.
        sampling_params: one for all or one for each; None: get_default_sampling_params().
        use_tqdm: show a progress bar, if stderr is a terminal.
        lora_request: the LoRA adapter to answer with, of LLMs with enable_lora: one for all prompts or one for each,
            None among them for the model alone. It is loaded with its first prompt.
        priority: one for all prompts or one for each, as the three below; those with a lower one run first. None: 0.
        user: in whose name; users of one priority, of other calls too, are served fairly, by tokens.
        ttft_target: seconds in which the first token is wanted; of one user's prompts those that are due first run
            first. tpot_target: seconds from a token to the next; prompts beside it are computed in smaller pieces.
        prompt_token_ids: in place of prompts, as older scripts for vLLM have it.

        Raises TypeError or ValueError for arguments that are wrong as a whole, never for one prompt of several.
        """
        refuse(tokenization_kwargs=tokenization_kwargs)
        if prompts is None:
            prompts, prompt_token_ids = prompt_token_ids, None
        if prompts is None or prompt_token_ids is not None:
            raise TypeError("prompts: expected text, token ids or several of these, or else prompt_token_ids")
        listed = list(as_prompts(prompts))
        standing = standings(
            len(listed), priority=priority, user=user, ttft_target=ttft_target, tpot_target=tpot_target
        )
        return self._collect(
            listed, self._adapted(sampling_params, lora_request, len(listed)), bool(use_tqdm), standing
        )

    def chat(
        self,
        messages: Sequence[Message] | Iterable[Sequence[Message]],
        sampling_params: Sampling = None,
        use_tqdm: bool | Callable[..., Any] = True,
        lora_request: Adapters = None,
        chat_template: str | None = None,
        chat_template_content_format: Literal["auto", "string"] = "auto",
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        mm_processor_kwargs: None = None,
        priority: ForEach[int] = None,
        *,
        user: ForEach[str] = None,
        ttft_target: ForEach[float] = None,
        tpot_target: ForEach[float] = None,
    ) -> list[RequestOutput]:
        """As generate, for one conversation or several, each a list of {"role": ..., "content": ...}.

        chat_template: a Jinja template in place of the model's own; chat_template_kwargs: further variables for it.
        chat_template_content_format: templates get a message's content as text; vLLM's "openai" is not here.
        add_generation_prompt: end the prompt with the opening of the assistant's answer; None: unless
            continue_final_message, which has the model go on with the last message.
        tools: JSON schemas of functions, for the template.
        """
        refuse(mm_processor_kwargs=mm_processor_kwargs or None)
        if chat_template_content_format not in ("auto", "string"):
            refuse(chat_template_content_format=chat_template_content_format)
        options = chat_options(
            chat_template, add_generation_prompt, continue_final_message, tools, chat_template_kwargs
        )
        conversations = [Conversation(each, options) for each in as_conversations(messages)]
        standing = standings(
            len(conversations), priority=priority, user=user, ttft_target=ttft_target, tpot_target=tpot_target
        )
        params = self._adapted(sampling_params, lora_request, len(conversations))
        return self._collect(conversations, params, bool(use_tqdm), standing)

    def embed(
        self,
        prompts: Prompt | Iterable[Prompt],
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: Pooling = None,
        prompt_name: str | None = None,
        truncate_prompt_tokens: int | None = None,
        lora_request: None = None,
        tokenization_kwargs: None = None,
    ) -> list[EmbeddingRequestOutput]:
        """An embedding of every prompt, in their order: the hidden states of its tokens, pooled as the files that
        sentence-transformers keeps with the model say; without such files the last token's, normalised.

        prompts, use_tqdm: as generate's. pooling_params: one for all or one for each, such as
            PoolingParams(dimensions=256).
        prompt_name: of the model's prompts, that which comes in front of each text; None: the model's default, if any.
        truncate_prompt_tokens: as PoolingParams', for all.
        """
        refuse(lora_request=lora_request, tokenization_kwargs=tokenization_kwargs)
        listed = with_prompt(as_prompts(prompts), self.engine.pooling.prompt(prompt_name))
        params = _embedding(pooling_params, truncate_prompt_tokens)
        return [EmbeddingRequestOutput.of(output) for output in self._collect(listed, params, bool(use_tqdm))]

    def score(
        self,
        data_1: str | Iterable[str],
        data_2: str | Iterable[str],
        *,
        use_tqdm: bool | Callable[..., Any] = True,
        pooling_params: PoolingParams | None = None,
        instruction: str | None = None,
        chat_template: str | None = None,
        truncate_prompt_tokens: int | None = None,
        lora_request: None = None,
        tokenization_kwargs: None = None,
    ) -> list[ScoringRequestOutput]:
        """How well each document answers its query, from 0 to 1: by the model's head (a class ForSequenceClassification
        of one label), or its logits of "yes" and "no" after Qwen3-Reranker's question. Models that embed give the
        cosine of both embeddings.

        data_1, data_2: queries and documents, as many; or one query for all documents.
        instruction: what makes a document fit, in place of Qwen3-Reranker's for web search. chat_template: a template
            for messages of the roles query and document (and system: the instruction).
        truncate_prompt_tokens: cut pairs to so many tokens at the document's end, -1: as many as the context holds.
        """
        refuse(lora_request=lora_request, tokenization_kwargs=tokenization_kwargs)
        params = _pooling(pooling_params)
        if truncate_prompt_tokens is not None:
            params = replace(params, truncate_prompt_tokens=truncate_prompt_tokens)
        pairs = [Pair(query, document) for query, document in zip(*paired(data_1, data_2), strict=True)]
        plan = self.session.scorer.plan(
            self.session.tokenizer, pairs, params, instruction=instruction, chat_template=chat_template
        )
        return scores(plan, self._collect(plan.prompts, plan.params, bool(use_tqdm)))

    def beam_search(
        self,
        prompts: Prompt | Iterable[Prompt],
        params: BeamSearchParams,
        lora_request: Adapters = None,
        use_tqdm: bool | Callable[..., Any] = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """The params.beam_width likeliest answers to each prompt, best first, as far as a beam search finds them.

        As generate does with SamplingParams(use_beam_search=True, n=params.beam_width), whose rules hold: prompts and
        requests of other threads run in the same batches. concurrency_limit: changes nothing here, since the engine
        runs as many prompts at a time as it has room for.
        """
        outputs = self.generate(prompts, params.sampling_params(), use_tqdm, lora_request)
        tokenizer = self.session.tokenizer
        return [BeamSearchOutput.of(output, params, tokenizer) for output in outputs]

    def reset_prefix_cache(self) -> bool:
        """Forgets cached prefixes but pinned ones. Does nothing and returns False while a stream is under way."""
        return self.session.reset_prefix_cache()

    def pin_prefix(self, prefix: Prompt | Sequence[Message]) -> PinnedPrefix:
        """Computes what many prompts begin with, and keeps it in the KV cache until the result's release().

        prefix: text, token ids, one of generate's dicts, or messages, which go through the chat template without the
            opening of an answer. Prompts share it as far as their tokens are the same.

        Raises ValueError if it cannot be run, or would leave too few KV blocks for a request that has not finished.
        Requests that need more blocks than the pins leave are refused afterwards, with the numbers.
        """
        return pin_prefix(self.session, prefix)

    def stream(
        self,
        prompts: Prompt | Iterable[Prompt],
        sampling_params: Sampling = None,
        *,
        partial: bool = False,
        priority: int = 0,
        user: str | None = None,
        ttft_target: float | None = None,
        tpot_target: float | None = None,
    ) -> Generator[RequestOutput, None, None]:
        """Yields the outputs as they finish; request_id is the prompt's index, from 0.

        prompts may be an iterator of any length, and sampling_params too: items are drawn when there is room for them.
        partial: yield unfinished outputs too, each with everything so far. Leaving the loop aborts unfinished requests.
        priority, user, ttft_target, tpot_target: as generate's, for all prompts.
        """
        standing = {"priority": priority, "user": user, "ttft_target": ttft_target, "tpot_target": tpot_target}
        requests = self._pair(as_prompts(prompts), sampling_params)
        return run_requests(self.session, requests, itertools.repeat(standing), partial=partial)

    def _collect(
        self,
        prompts: Sequence[Prompt],
        params: Sampling | Pooling,
        show_progress: bool,
        standing: Iterable[dict[str, Any]] = _ORDINARY,
    ) -> list[RequestOutput]:
        outputs: dict[int, RequestOutput] = {}
        sizes = [size_of(prompt) for prompt in prompts]
        one = params if isinstance(params, SamplingParams | PoolingParams) else None
        most, samples = (one.max_tokens, one.num_sequences) if one else (None, 1)
        progress = BatchProgress(self.engine.metrics, len(prompts), sum(sizes), most, samples)
        title = "Embedding" if isinstance(one, PoolingParams) else "Generating"
        with ProgressReporter(title, progress, lines=False) if show_progress else nullcontext():
            for output in run_requests(self.session, self._pair(prompts, params), iter(standing)):
                index = int(output.request_id)
                outputs[index] = output
                progress.finish(sizes[index], len(output.prompt_token_ids), failed=output.error is not None)
                if output.error is not None:
                    logger.warning("prompt %d: %s", index, output.error)
        return [outputs[index] for index in range(len(prompts))]

    def _adapted(self, params: Sampling, lora_request: Adapters, count: int) -> Sampling:
        """With the adapters of so many prompts. Raises ValueError for one that cannot be had."""
        if lora_request is None:
            return params
        adapters = adapters_of(lora_request, count)
        for each in dict.fromkeys(adapters):
            if each is not None:
                self.engine.adapters.find(each)
        if params is None or isinstance(params, SamplingParams):
            params = itertools.repeat(params or self.get_default_sampling_params(), count)
        return list(with_adapters(params, adapters))

    def _pair(self, prompts: Iterable[Prompt], params: Sampling | Pooling) -> Iterator[tuple[Prompt, Params]]:
        if params is None or isinstance(params, SamplingParams | PoolingParams):
            return zip(prompts, itertools.repeat(params or self.get_default_sampling_params()))
        if isinstance(params, str | bytes | Mapping) or not isinstance(params, Iterable):
            raise TypeError(f"sampling_params: expected SamplingParams, or one for each prompt, got {params!r:.80}")
        if isinstance(params, Sized) and isinstance(prompts, Sized) and len(params) != len(prompts):
            raise ValueError(
                f"sampling_params: expected one, or one for each of {len(prompts)} prompts, got {len(params)}"
            )
        return zip(prompts, params, strict=True)


def _embedding(params: Pooling, truncate: int | None) -> Pooling:
    """With the truncation, if there is one. Raises TypeError for anything but PoolingParams."""
    several = isinstance(params, Iterable) and not isinstance(params, str | bytes | Mapping)
    each = [_pooling(one) for one in params] if several else [_pooling(params)]  # type: ignore[union-attr]
    if truncate is not None:
        each = [replace(one, truncate_prompt_tokens=truncate) for one in each]
    return each if several else each[0]


def _pooling(params: object) -> PoolingParams:
    if params is None:
        return PoolingParams()
    if not isinstance(params, PoolingParams):
        raise TypeError(f"pooling_params: expected PoolingParams, or one for each prompt, got {params!r:.80}")
    return params


def given_to(llm: LLM) -> dict[str, Any]:
    """The arguments of a loaded model that are not the defaults."""
    config = llm.engine.config
    return {field.name: value for field in fields(config) if (value := getattr(config, field.name)) != field.default}


def split_arguments(caller: str, arguments: Mapping[str, Any], loaded: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of LLM, unless a loaded one is given, and those of SamplingParams. Raises TypeError for others."""
    of_llm = set() if loaded else {*signature(LLM).parameters, *EngineArgs.VLLM_ONLY} - {"model"}
    of_sampling = {field.name for field in fields(SamplingParams)}
    expect_known(caller, arguments, of_llm | of_sampling)
    return (
        {name: value for name, value in arguments.items() if name in of_llm},
        {name: value for name, value in arguments.items() if name not in of_llm},
    )
