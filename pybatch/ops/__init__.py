"""The kernels as typed Python functions.

Every function takes tensors on one device and runs that device's kernel. F stands for float32, float16 or bfloat16.
Matrices are row-major. Their rows must be contiguous, but there may be gaps between them, so a column slice of a fused
projection is fine. If ``out`` is given it is written and returned, else it is allocated.

A wrong device, dtype, shape, stride or number raises RuntimeError with the argument's name and what was expected, and
nothing is written. Values in tensors (ids, slots, block tables, ...) are checked on the CPU only, since reading them on
a GPU would synchronise. A CPU kernel that is refused memory raises RuntimeError too.

Every output row depends on its own inputs alone, bit for bit: not on other rows, the batch or the thread count.
"""

from __future__ import annotations

from pybatch.ops.activation import (
    clamped_swiglu,
    gelu,
    gelu_tanh,
    gelu_tanh_gate,
    gelu_tanh_mul,
    relu2,
    sigmoid_mul,
    silu_mul,
    xielu,
)
from pybatch.ops.attention import attention_mass, latent_attention, paged_attention
from pybatch.ops.embeddings import embedding, take_rows
from pybatch.ops.experts import Routing, Scoring, route_experts
from pybatch.ops.kv_cache import (
    INT4_GROUP,
    LATENT_STEP,
    copy_blocks,
    gather_kv,
    latent_write,
    rope_kv_write,
    rotate_keys,
    swap_blocks,
)
from pybatch.ops.library import CUDA, ISA, CpuGraph
from pybatch.ops.logits import adjust_logits, sample, scale_logits, token_logprobs
from pybatch.ops.lora import Lora, add_lora, pack_lora_a
from pybatch.ops.matmul import STORE, Epilogue, Experts, matmul_dense, matmul_gguf, matmul_w8a8, matmul_w8a16
from pybatch.ops.norms import add_normed, gated_rms_norm, layer_norm, rms_norm
from pybatch.ops.packing import (
    FLOAT8_BLOCK,
    GGUF_BLOCKS,
    PANEL,
    GgufBlock,
    interleave_gate_up,
    pack_dense,
    pack_float8,
    pack_gguf,
    pack_int8,
    packed_dense_shape,
    packed_float8_blocks_shape,
    packed_gguf_shape,
    quantize_int8,
)
from pybatch.ops.recurrent import STATE_LANES, causal_conv, gated_delta_rule, state_width

__all__ = [
    "CUDA",
    "FLOAT8_BLOCK",
    "GGUF_BLOCKS",
    "INT4_GROUP",
    "ISA",
    "LATENT_STEP",
    "PANEL",
    "STATE_LANES",
    "STORE",
    "CpuGraph",
    "Epilogue",
    "Experts",
    "GgufBlock",
    "Lora",
    "Routing",
    "Scoring",
    "add_lora",
    "add_normed",
    "adjust_logits",
    "attention_mass",
    "causal_conv",
    "clamped_swiglu",
    "copy_blocks",
    "embedding",
    "gated_delta_rule",
    "gated_rms_norm",
    "gather_kv",
    "gelu",
    "gelu_tanh",
    "gelu_tanh_gate",
    "gelu_tanh_mul",
    "interleave_gate_up",
    "latent_attention",
    "latent_write",
    "layer_norm",
    "matmul_dense",
    "matmul_gguf",
    "matmul_w8a8",
    "matmul_w8a16",
    "pack_dense",
    "pack_float8",
    "pack_gguf",
    "pack_int8",
    "pack_lora_a",
    "packed_dense_shape",
    "packed_float8_blocks_shape",
    "packed_gguf_shape",
    "paged_attention",
    "quantize_int8",
    "relu2",
    "rms_norm",
    "rope_kv_write",
    "rotate_keys",
    "route_experts",
    "sample",
    "scale_logits",
    "sigmoid_mul",
    "silu_mul",
    "state_width",
    "swap_blocks",
    "take_rows",
    "token_logprobs",
    "xielu",
]
