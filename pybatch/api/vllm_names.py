"""What vLLM's LLM and AsyncLLM have beyond ours: arguments that pass where they ask for nothing, and methods."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any


class Anything:
    """All values."""

    def __contains__(self, value: object) -> bool:
        return True


ANYTHING: Any = Anything()
"""Of arguments that change no result here."""

ARGUMENTS: dict[str, Collection[Any]] = {  # by name, the values that ask for nothing
    # one process, one device
    "data_parallel_size": (1,),
    "decode_context_parallel_size": (1,),
    "prefill_context_parallel_size": (1,),
    "enable_expert_parallel": (False,),
    "enable_eplb": (False,),
    "enable_dbo": (False,),
    "disable_custom_all_reduce": ANYTHING,
    "max_parallel_loading_workers": ANYTHING,
    "ray_workers_use_nsight": ANYTHING,
    "worker_use_ray": ANYTHING,
    "worker_cls": ("auto",),
    "worker_extension_cls": ("",),
    # the model and its files
    "task": ("auto", "generate", "embed", "score"),  # every model may do what it can
    "runner": ("auto", "generate", "pooling"),
    "convert": ("auto", "none", "embed"),
    "trust_remote_code": ANYTHING,  # no code of a model is ever run
    "tokenizer_mode": ("auto", "hf"),
    "load_format": ("auto", "safetensors", "gguf"),
    "config_format": ("auto", "hf"),
    "model_impl": ANYTHING,
    "revision": (None,),
    "code_revision": (None,),
    "tokenizer_revision": (None,),
    "download_dir": (None,),
    "hf_token": (None, True, False),
    "hf_config_path": (None,),
    "hf_overrides": (None, {}),
    "rope_scaling": (None, {}),
    "rope_theta": (None,),
    "override_generation_config": (None, {}),
    "model_loader_extra_config": (None, {}),
    "safetensors_load_strategy": ANYTHING,
    "ignore_patterns": ANYTHING,
    "use_tqdm_on_load": ANYTHING,
    "served_model_name": ANYTHING,
    "allowed_local_media_path": ("",),
    "allowed_media_domains": (None,),
    # how steps are run
    "enforce_eager": ANYTHING,
    "compilation_config": ANYTHING,
    "optimization_level": ANYTHING,
    "cuda_graph_sizes": ANYTHING,
    "cudagraph_capture_sizes": ANYTHING,
    "max_cudagraph_capture_size": ANYTHING,
    "max_seq_len_to_capture": ANYTHING,
    "max_context_len_to_capture": ANYTHING,
    "attention_backend": ANYTHING,
    "attention_config": ANYTHING,
    "disable_cascade_attn": ANYTHING,
    "disable_sliding_window": (False,),
    "async_scheduling": ANYTHING,
    "disable_async_output_proc": ANYTHING,
    "num_scheduler_steps": ANYTHING,
    "multi_step_stream_outputs": ANYTHING,
    "scheduling_policy": ("fcfs", "priority"),
    "scheduler_cls": (None,),
    "scheduler_delay_factor": ANYTHING,
    "preemption_mode": ANYTHING,
    "enable_chunked_prefill": ANYTHING,
    "max_num_partial_prefills": ANYTHING,
    "max_long_partial_prefills": ANYTHING,
    "long_prefill_token_threshold": ANYTHING,
    "num_lookahead_slots": ANYTHING,
    "stream_interval": ANYTHING,
    "max_logprobs": ANYTHING,
    "logprobs_mode": ("raw_logprobs",),
    "logits_processors": (None, []),
    "logits_processor_pattern": (None,),
    # memory
    "kv_offloading_size": (None,),
    "kv_cache_memory_bytes": (None,),
    "num_gpu_blocks_override": (None,),
    "use_v2_block_manager": ANYTHING,
    "disable_hybrid_kv_cache_manager": ANYTHING,
    "prefix_caching_hash_algo": ANYTHING,
    "calculate_kv_scales": ANYTHING,
    "enable_sleep_mode": (False,),
    "kv_transfer_config": (None,),
    "kv_events_config": (None,),
    "ec_transfer_config": (None,),
    # adapters, drafts, structure, other inputs and outputs
    "enable_lora_bias": (False,),
    "default_mm_loras": (None,),
    "long_lora_scaling_factors": (None,),
    **dict.fromkeys(("max_cpu_loras", "lora_extra_vocab_size", "fully_sharded_loras"), ANYTHING),
    "enable_prompt_adapter": (False,),
    **dict.fromkeys(("max_prompt_adapters", "max_prompt_adapter_token"), ANYTHING),
    "speculative_model": (None,),
    "num_speculative_tokens": (None,),
    "ngram_prompt_lookup_max": (None,),
    "ngram_prompt_lookup_min": (None,),
    "guided_decoding_backend": ANYTHING,
    "structured_outputs_config": ANYTHING,
    "reasoning_parser": ("", None),
    "enable_prompt_embeds": (False,),
    "enable_mm_embeds": (False,),
    "limit_mm_per_prompt": ANYTHING,
    "mm_processor_kwargs": (None, {}),
    **dict.fromkeys(("mm_processor_cache_gb", "disable_mm_preprocessor_cache", "skip_mm_profiling"), ANYTHING),
    **dict.fromkeys(("media_io_kwargs", "interleave_mm_strings", "disable_chunked_mm_input"), ANYTHING),
    "pooler_config": (None,),
    "override_pooler_config": (None,),
    "additional_config": (None, {}),
    # what is reported
    "disable_log_stats": ANYTHING,
    "disable_log_requests": ANYTHING,
    "enable_log_requests": ANYTHING,
    "max_log_len": ANYTHING,
    "otlp_traces_endpoint": (None,),
    "collect_detailed_traces": (None,),
    "show_hidden_metrics_for_version": ANYTHING,
    "profiler_config": (None,),
    "tokenizer_pool_size": ANYTHING,
    "tokenizer_pool_type": ANYTHING,
    "tokenizer_pool_extra_config": ANYTHING,
}

QUANTIZATIONS = frozenset(
    [
        "aqlm",
        "autoround",
        "bitblas",
        "cpu_awq",
        "deepspeedfp",
        "experts_int8",
        "fp_quant",
        "gptq_bitblas",
        "gptq_marlin_24",
        "hqq",
        "inc",
        "ipex",
        "marlin",
        "moe_wna16",
        "neuron_quant",
        "petit_nvfp4",
        "ptpc_fp8",
        "qqq",
        "quark",
        "rtn",
        "squeezellm",
        "tpu_int8",
    ]
)

METHODS = frozenset(
    [
        "add_lora",
        "apply_model",
        "classify",
        "collective_rpc",
        "encode",
        "enqueue",
        "get_model_config",
        "get_supported_tasks",
        "init_weight_transfer_engine",
        "is_sleeping",
        "is_tracing_enabled",
        "list_loras",
        "pause_generation",
        "pin_lora",
        "preprocess_chat",
        "remove_lora",
        "reset_encoder_cache",
        "reset_mm_cache",
        "resume_generation",
        "reward",
        "scale_elastic_ep",
        "set_tokenizer",
        "sleep",
        "start_profile",
        "stop_profile",
        "supported_tasks",
        "update_weights",
        "wait_for_completion",
        "wake_up",
    ]
)


def refuse(**arguments: object) -> None:
    """Raises ValueError for the first that is not None: a method's arguments that are vLLM's alone."""
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: known in vLLM, not here; expected None, got {value!r:.80}")
