"""From arguments to a model that answers: loaded, and with the prefixes that it keeps from the start."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pybatch.api.default_params import default_params
from pybatch.api.engine_args import EngineArgs
from pybatch.api.inputs import Message, Prompt, is_token_ids
from pybatch.api.lora_names import named_adapters
from pybatch.api.pinned_prefix import pin_prefix
from pybatch.api.scoring import label_tokens
from pybatch.api.session import Session
from pybatch.engine import Engine
from pybatch.engine.execution.parallel.followers import Followers, Host
from pybatch.engine.execution.parallel.local import ThisMachine
from pybatch.machine.device import find_device
from pybatch.machine.folders import make_folder, of_home
from pybatch.machine.memory_nodes import interleave_memory
from pybatch.machine.threads import bind_threads, set_threads
from pybatch.model.checkpoints.find import of_argument
from pybatch.model.decoder import Decoder
from pybatch.model.loader import load_model
from pybatch.model.offload import check_offload
from pybatch.model.weights import INT8_MATMULS

logger = logging.getLogger(__name__)

Prefix = Prompt | Sequence[Message]


def open_session(arguments: EngineArgs) -> Session:
    """Raises ValueError for what the arguments ask in vain, OSError for a file that cannot be read, and what loading a
    model raises."""
    if arguments.prefix_cache_dir is not None:
        make_folder("prefix_cache_dir", Path(arguments.prefix_cache_dir), mode=0o700)
    path = arguments.pinned_prefixes
    prefixes = [] if path is None else list(read_prefixes(of_home(path)))
    session = load_session(arguments)
    for place, prefix in prefixes:
        try:
            pin_prefix(session, prefix)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"pinned_prefixes: {place}: {error}") from error
    return session


def load_session(arguments: EngineArgs) -> Session:
    """Loads the model and makes its engine."""
    check_offload(arguments.cpu_offload_gb, find_device(arguments.device).type)
    threads = set_threads(arguments.threads)
    if arguments.bind_threads is not None:
        bind_threads(arguments.bind_threads)
    interleave_memory(arguments.interleave_memory)
    load: dict[str, Any] = {
        "model": arguments.model,
        "dtype": arguments.dtype,
        "quantization": arguments.quantization,
        "device": arguments.device,
        "max_model_len": arguments.max_model_len,
        "adapter": arguments.adapter,
        "cpu_offload_gb": arguments.cpu_offload_gb,
        "max_loras": arguments.num_loras,
        "max_lora_rank": arguments.max_lora_rank,
        "lora_dtype": arguments.lora_dtype,
    }
    followers = _followers(arguments, load, threads)
    loaded = load_model(
        **load,
        tokenizer=arguments.tokenizer,
        skip_tokenizer=arguments.skip_tokenizer_init,
        weights_cache_dir=arguments.weights_cache_dir,
        ranks=None if followers is None else followers.ranks,
        stages=None if followers is None else followers.stages,
    )
    params = default_params(loaded.generation_config, arguments.generation_config)
    choice = None
    if arguments.tune:
        from pybatch.tune.autotune import tuned

        choice = tuned(loaded.decoder, arguments, arguments.threads)
        arguments = replace(arguments, **choice.settings())
        logger.info("%s", choice)
    engine = Engine(
        loaded.decoder,
        loaded.tokenizer,
        arguments,
        _draft_decoder(arguments),
        followers,
        pooling=loaded.pooling,
        labels=loaded.pooling.labels or label_tokens(loaded.tokenizer),
        adapter_slots=loaded.adapters,
    )
    session = Session(engine, loaded.tokenizer, params)
    session.tuned = choice
    session.unpacked = loaded.unpacked
    for request in named_adapters(arguments.lora_modules).values():
        try:
            engine.adapters.find(request)
        except ValueError as error:
            raise ValueError(f"lora_modules: {str(error).removeprefix('lora_request: ')}") from error
    return session


def _followers(arguments: EngineArgs, load: dict[str, Any], threads: int) -> Followers | None:
    """The processes beside this one that hold the model with it, if any do."""
    ranks, stages = arguments.tensor_parallel_size, arguments.pipeline_parallel_size
    size, device = ranks * stages, find_device(arguments.device)
    if size == 1:
        return None
    host: Host
    if arguments.distributed_executor_backend == "ray":
        from pybatch.engine.execution.parallel.on_ray import RayCluster

        host = RayCluster(size, arguments.threads, device)
    else:
        host = ThisMachine(size, threads if arguments.threads is not None else max(1, threads // size), device)
    set_threads(host.threads(0))
    return Followers(ranks, stages, load, host)


def _draft_decoder(arguments: EngineArgs) -> Decoder | None:
    """The model of speculative_config, loaded as the large one is."""
    speculation = arguments.speculation
    if speculation is None or speculation.model is None:
        return None
    same = arguments.quantization if arguments.quantization in INT8_MATMULS else None
    with of_argument("speculative_config: model"):
        return load_model(
            speculation.model,
            dtype=arguments.dtype,
            quantization=speculation.quantization or same,
            device=arguments.device,
            skip_tokenizer=True,
            weights_cache_dir=arguments.weights_cache_dir,
        ).decoder


def read_prefixes(path: Path) -> Iterator[tuple[str, Prefix]]:
    """The prefixes of a file, each with its place. Raises ValueError for one that is none."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"pinned_prefixes: {path}: expected text in UTF-8: {error}") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            place = f"{path}, line {number}"
            yield place, read_prefix(place, line)


def read_prefix(place: str, line: str) -> Prefix:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"pinned_prefixes: {place}: expected a JSON object: {error}") from None
    match fields:
        case {"messages": [dict(), *_] as messages}:
            return list[Message](messages)
        case {"prompt": str(prompt)} if prompt:
            return prompt
        case {"prompt_token_ids": [_, *_] as ids} if is_token_ids(ids):
            return {"prompt_token_ids": ids}
    raise ValueError(
        f"pinned_prefixes: {place}: expected an object with 'messages', a 'prompt' or 'prompt_token_ids', "
        f"got {line.strip():.80}"
    )
