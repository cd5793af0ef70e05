"""What an engine is made of: a decoder with its caches, and what turns requests into steps and steps into answers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pybatch.engine.adapters import Adapters
from pybatch.engine.cache_sizes import CacheSizes, cache_sizes
from pybatch.engine.computing import StepComputer
from pybatch.engine.config import EngineConfig
from pybatch.engine.disk.make import make_prefix_files
from pybatch.engine.disk.prefix_files import PrefixFiles
from pybatch.engine.entrance import Entrance
from pybatch.engine.execution.attention_mass import AttentionMass
from pybatch.engine.execution.caches import make_caches
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.engine.execution.kv_pruner import KvPruner, no_pruning
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.execution.parallel.followers import Followers, LedAdapterSlots, LedKvCache
from pybatch.engine.execution.pooler import Pooler
from pybatch.engine.execution.sampler import Sampler
from pybatch.engine.execution.swap_cost import SwapCost
from pybatch.engine.grammars import GrammarQueue
from pybatch.engine.intake import Intake
from pybatch.engine.metrics import EngineMetrics
from pybatch.engine.speculation.make import make_speculator
from pybatch.engine.speculation.speculator import Speculator
from pybatch.engine.structured.compiler import GrammarCompiler
from pybatch.model.decoder import Decoder
from pybatch.model.lora.slots import AdapterSlots
from pybatch.model.pooling import PoolingConfig
from pybatch.model.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Of one engine, for as long as it is there.

    eos_ids: the model's end-of-sequence tokens. num_host_blocks: that swap_space has room for. looks_ahead: a step may
    be queued on the device behind another.
    """

    tokenizer: Tokenizer | None
    eos_ids: frozenset[int]
    sizes: CacheSizes
    kv_cache: KvCache
    num_host_blocks: int
    swap_cost: SwapCost
    prefix_files: PrefixFiles | None
    computer: StepComputer
    looks_ahead: bool
    speculator: Speculator | None
    pruner: KvPruner
    pooler: Pooler
    adapters: Adapters
    intake: Intake
    entrance: Entrance
    metrics: EngineMetrics


def make_parts(
    decoder: Decoder,
    tokenizer: Tokenizer | None,
    config: EngineConfig,
    *,
    draft_decoder: Decoder | None,
    followers: Followers | None,
    pooling: PoolingConfig,
    labels: tuple[int, int] | None,
    adapter_slots: AdapterSlots | None,
) -> Parts:
    """The arguments are Engine's. draft_decoder: None where config asks for none. Raises ValueError for what does not
    fit the memory or the model."""
    model, device = decoder.config, decoder.device
    sizes = cache_sizes(decoder, config, draft_decoder, followers)
    if followers is not None:
        followers.tell("make_caches", config, sizes.num_kv_blocks, sizes.num_states)
    make_kv_cache = KvCache if followers is None else partial(LedKvCache, followers)
    kv_cache, caches = make_caches(decoder, config, sizes.num_kv_blocks, sizes.num_states, make_kv_cache)
    shapes = kv_cache.layout.shapes
    mass = AttentionMass(len(shapes), max(shape.kv_heads for shape in shapes), device)
    runner = ModelRunner.of(
        config,
        decoder,
        caches,
        sizes.max_model_len,
        mass=mass,
        followers=followers,
        max_drafts=0 if config.speculation is None else config.speculation.num_speculative_tokens,
        adapters=adapter_slots is not None,
    )
    if followers is None:
        runner.record_graphs()
    decode_token = (lambda token: None) if tokenizer is None else tokenizer.token_text
    sampler = Sampler(decode_token, model.vocab_size, device)
    speculator = make_speculator(
        config,
        draft_decoder,
        vocab_size=model.vocab_size,
        num_blocks=sizes.num_kv_blocks,
        max_model_len=sizes.max_model_len,
    )
    own_ids = () if tokenizer is None else tokenizer.eos_token_ids
    all_ids = {*model.eos_token_ids, *own_ids}
    eos_ids = frozenset(token for token in all_ids if 0 <= token < model.vocab_size)
    pooler = Pooler(decoder, pooling, labels if followers is None else None)
    if followers is None or adapter_slots is None:
        adapters = Adapters(adapter_slots)
    else:
        adapters = Adapters(LedAdapterSlots(followers, adapter_slots))
    intake = Intake(
        tokenizer,
        eos_ids=eos_ids,
        vocab_size=model.vocab_size,
        max_model_len=sizes.max_model_len,
        seed=config.seed or 0,
        max_num_seqs=min(config.max_num_seqs, config.max_num_batched_tokens),
        num_kv_blocks=sizes.num_kv_blocks,
        block_size=config.block_size,
        num_states=sizes.num_states,
        no_pruning=no_pruning(decoder) if followers is None else "several ranks hold the model",
        no_text=None if model.generates else f"{model.name} has no projection to the vocabulary",
        pooling=pooler.pooling,
        adapters=adapters,
    )
    pruner = KvPruner(kv_cache, decoder, mass)
    metrics = EngineMetrics(sizes.num_kv_blocks)
    make_compiler = partial(
        GrammarCompiler,
        tokenizer,
        vocab_size=model.vocab_size,
        eos_ids=eos_ids,
        seconds=config.structured_outputs_timeout,
    )
    host_bytes = int(config.swap_space * 2**30)
    num_host_blocks = kv_cache.make_host_pool(host_bytes) if host_bytes else 0

    def seconds_per_token() -> float:
        return metrics.step_cost.line()[1]

    return Parts(
        tokenizer=tokenizer,
        eos_ids=eos_ids,
        sizes=sizes,
        kv_cache=kv_cache,
        num_host_blocks=num_host_blocks,
        swap_cost=SwapCost(kv_cache.seconds_per_swap, seconds_per_token),
        prefix_files=make_prefix_files(config, decoder, kv_cache, seconds_per_token),
        computer=StepComputer(runner, sampler),
        looks_ahead=runner.is_ahead_of_device and not (followers or sizes.num_states or config.speculation),
        speculator=speculator,
        pruner=pruner,
        pooler=pooler,
        adapters=adapters,
        intake=intake,
        entrance=Entrance(GrammarQueue(make_compiler), adapters),
        metrics=metrics,
    )
