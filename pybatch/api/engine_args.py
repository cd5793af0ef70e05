"""What LLM and AsyncLLM take: the engine's settings, and how the model is loaded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, MISSING, InitVar, dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pybatch.api.lora_names import lora_modules
from pybatch.api.vllm_names import ARGUMENTS, QUANTIZATIONS
from pybatch.engine.arguments import expect_gib, list_fields, suggest_names
from pybatch.engine.config import EngineConfig


@list_fields
@suggest_names
@dataclass(frozen=True)
class EngineArgs(EngineConfig):
    """The arguments of LLM, AsyncLLM and the command. gpu_memory_utilization is vLLM's name of memory_utilization.

    An unknown argument raises TypeError, an impossible value ValueError. Other arguments of vLLM's pass with a warning
    where they ask for nothing special (pipeline_parallel_size=1), and raise TypeError where they do.
    """

    model: Annotated[str | Path, "A Hugging Face directory or hub name (safetensors), a GGUF file, or smollm2-135m."]
    _: KW_ONLY
    tokenizer: Annotated[str | Path | None, "Where to take the tokenizer from, if not from the model."] = None
    skip_tokenizer_init: Annotated[
        bool, "Go without a tokenizer: prompts are then token ids, and outputs have no text."
    ] = False
    dtype: Annotated[str, "Of the activations: auto (float32; on a GPU bfloat16), float32, bfloat16 or float16."] = (
        "auto"
    )
    quantization: Annotated[
        str | None,
        "int8 (weights and activations), int8-weight-only or gguf (a GGUF file's own 2 to 8 bits). A "
        "checkpoint that is quantised already keeps its bits without it.",
    ] = None
    adapter: Annotated[
        str | Path | None, "A LoRA adapter, as peft saves it, or its name on the hub: merged into the weights."
    ] = None
    enable_lora: Annotated[
        bool, "Let requests name LoRA adapters, which are kept beside the weights and mixed in a batch."
    ] = False
    lora_modules: Annotated[
        list[str] | Mapping[str, str | Path] | None,
        "Adapters by name, which a request's or a row's model may be: name=path, as peft saves it or from the hub. "
        "They enable LoRA.",
    ] = None
    max_loras: Annotated[
        int | None, "Adapters in memory, and so in a batch. Default: 1, or as many as lora_modules has."
    ] = None
    max_lora_rank: Annotated[int, "The largest rank of an adapter that requests name."] = 16
    lora_dtype: Annotated[
        str, "In which such adapters are kept: auto (the activations' type), float32, bfloat16 or float16."
    ] = "auto"
    weights_cache_dir: Annotated[
        str | Path | None,
        "A folder for weights as they are packed for a CPU: a later start maps them from there, and processes that "
        "run the same model share them.",
    ] = None
    cpu_offload_gb: Annotated[
        float,
        "GiB of weights that stay in the host's memory, in each process, and are copied to the GPU layer by layer, "
        "each while the one before computes.",
    ] = 0.0
    device: Annotated[str, "cpu, cuda, cuda:N, or auto: a GPU if there is one that pybatch was built for."] = "auto"
    threads: Annotated[
        int | None,
        "Of the kernels. Default: OMP_NUM_THREADS, else the physical cores. No result depends on it.",
    ] = None
    tensor_parallel_size: Annotated[
        int,
        "Processes that hold the model together: each has a share of every layer and of the KV cache, on a GPU of its "
        "own or with a share of the cores. Answers are those of one process, bit for bit.",
    ] = 1
    pipeline_parallel_size: Annotated[
        int,
        "Stages of tensor_parallel_size processes each that have the model's layers one behind the other. Answers are "
        "those of one process, bit for bit.",
    ] = 1
    distributed_executor_backend: Annotated[
        Literal["mp", "ray"],
        "Where these processes are: mp on this machine, ray on the machines of the Ray cluster that it is part of.",
    ] = "mp"
    tune: Annotated[
        bool,
        "Choose max_num_seqs, max_num_batched_tokens, threads and speculation by steps that are measured at the start, "
        "for ten seconds at most; kept for each machine, model and version. What is given is left as it is.",
    ] = False
    bind_threads: Annotated[
        str | None,
        "Binds each of the kernels' threads to a processor: all, or a list such as 0-7,16. For a machine with nothing "
        "else to do; by default the system may move them.",
    ] = None
    interleave_memory: Annotated[
        str | None,
        "Takes weights and KV from a machine's memory nodes (NUMA) in turn, so that all are read at once: all, or a "
        "list such as 0-1. By default the system chooses.",
    ] = None
    generation_config: Annotated[
        str | Path,
        "Where the sampling defaults come from: auto (the model's generation_config.json), vllm (none of the model's), "
        "or a folder that has one.",
    ] = "auto"
    pinned_prefixes: Annotated[
        str | Path | None,
        "A file of prefixes that are computed at the start and stay in the KV cache: on each line a JSON object with "
        "messages, a prompt (text as it is) or prompt_token_ids.",
    ] = None
    gpu_memory_utilization: InitVar[float | None] = None

    VLLM_ONLY: ClassVar[Mapping[str, Collection[Any]]] = ARGUMENTS

    def __post_init__(self, gpu_memory_utilization: float | None) -> None:
        for field in fields(self):  # vLLM's scripts have None for the default
            if getattr(self, field.name) is None and field.default is not MISSING:
                object.__setattr__(self, field.name, field.default)
        if gpu_memory_utilization is not None:
            if self.memory_utilization != EngineConfig.memory_utilization:
                raise ValueError(
                    "memory_utilization and gpu_memory_utilization are two names of one argument: give one"
                )
            object.__setattr__(self, "memory_utilization", gpu_memory_utilization)
        if self.quantization in QUANTIZATIONS:
            raise ValueError(
                f"quantization: {self.quantization!r} is known in vLLM, not here; expected None, 'int8', "
                "'int8-weight-only' or 'gguf'"
            )
        for size in ("tensor_parallel_size", "pipeline_parallel_size"):
            self._expect_integer(size, 1, 64, "an integer from 1 to 64")
            for name in ("weights_cache_dir", "prefix_cache_dir", "bind_threads", "interleave_memory"):
                if getattr(self, size) > 1 and getattr(self, name) is not None:
                    raise ValueError(f"{name}: expected None where {size} is above 1")
            if getattr(self, size) > 1 and self.tune:
                raise ValueError(f"tune: expected False where {size} is above 1")
        if not isinstance(self.tune, bool):
            raise ValueError(f"tune: expected True or False, got {self.tune!r}")
        if self.distributed_executor_backend not in (None, "mp", "ray"):
            raise ValueError(
                f"distributed_executor_backend: expected 'mp' or 'ray', got {self.distributed_executor_backend!r}"
            )
        self._check_loras()
        expect_gib("cpu_offload_gb", self.cpu_offload_gb)
        folder = self.weights_cache_dir
        if folder is not None and (not isinstance(folder, str | Path) or not str(folder)):
            raise ValueError(f"weights_cache_dir: expected a folder's path, got {folder!r}")
        dtype = str(self.dtype).removeprefix("torch.")
        object.__setattr__(self, "dtype", {"half": "float16", "float": "float32"}.get(dtype, dtype))
        super().__post_init__()

    def _check_loras(self) -> None:
        if not isinstance(self.enable_lora, bool):
            raise ValueError(f"enable_lora: expected True or False, got {self.enable_lora!r}")
        modules = lora_modules(self.lora_modules)
        object.__setattr__(self, "lora_modules", tuple(f"{name}={path}" for name, path in modules.items()) or None)
        enabled = self.enable_lora or bool(modules)
        if self.max_loras is not None:
            self._expect_integer("max_loras", 1, 1024, "an integer from 1 to 1024")
        self._expect_integer("max_lora_rank", 1, 1024, "an integer from 1 to 1024")
        object.__setattr__(self, "enable_lora", enabled)

    @property
    def num_loras(self) -> int:
        """Places for adapters."""
        return (self.max_loras or max(1, len(self.lora_modules or ()))) if self.enable_lora else 0


AsyncEngineArgs = EngineArgs  # vLLM's name of AsyncLLM's
