"""pybatch's CUDA ops, run on the SIMT layer: the functions of pybatch.ops, on CPU tensors.

Every call copies its tensors into buffers that end exactly where the tensor ends and lie far from one another, so that
an access beyond them is seen, and copies the results back. What a kernel does wrong raises SimtFault.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from pybatch import ops
from pybatch.model.layers import Fused
from simt import compile


class SimtFault(Exception):  # noqa: N818  (a fault is what it finds, not an error of its own)
    """A kernel broke a rule; the message says which, in which kernel, block and thread, and at which source line."""


# ---- csrc/pybatch/*.h ----

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3, torch.float8_e4m3fn: 4}
INT4 = 5  # a KV cache of bytes


class Matrix(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("row_stride", c_int64), ("dtype", c_int32)]


class NormParams(ctypes.Structure):
    _fields_ = [
        ("x", Matrix), ("residual", Matrix), ("out", Matrix), ("weight", c_void_p), ("bias", c_void_p),
        ("eps", c_float), ("rows", c_int64), ("width", c_int64),
    ]  # fmt: skip


class ActivationParams(ctypes.Structure):
    _fields_ = [("x", Matrix), ("out", Matrix), ("rows", c_int64), ("width", c_int64)]


class XieluParams(ctypes.Structure):
    _fields_ = [
        *ActivationParams._fields_, ("alpha_p", c_float), ("alpha_n", c_float), ("beta", c_float), ("eps", c_float),
    ]  # fmt: skip


class AddNormedParams(ctypes.Structure):
    _fields_ = [
        ("x", Matrix), ("residual", Matrix), ("weight", c_void_p), ("eps", c_float), ("factor", c_float),
        ("scale", c_float), ("rows", c_int64), ("width", c_int64),
    ]  # fmt: skip


class GatedActivationParams(ctypes.Structure):
    _fields_ = [("x", Matrix), ("out", Matrix), ("rows", c_int64), ("width", c_int64)]


class ClampedSwigluParams(ctypes.Structure):
    _fields_ = [*GatedActivationParams._fields_, ("alpha", c_float), ("limit", c_float)]


class GateParams(ctypes.Structure):
    _fields_ = [("x", Matrix), ("gate", Matrix), ("out", Matrix), ("rows", c_int64), ("width", c_int64)]


class GatedNormParams(ctypes.Structure):
    _fields_ = [
        ("x", Matrix), ("gate", Matrix), ("out", Matrix), ("weight", c_void_p), ("eps", c_float), ("rows", c_int64),
        ("heads", c_int64), ("width", c_int64),
    ]  # fmt: skip


class StateBatch(ctypes.Structure):
    _fields_ = [
        ("query_start", c_void_p), ("source", c_void_p), ("destination", c_void_p), ("sequences", c_int64),
        ("tokens", c_int64),
    ]  # fmt: skip


class CausalConvParams(ctypes.Structure):
    _fields_ = [
        ("x", Matrix), ("out", Matrix), ("weight", c_void_p), ("state", c_void_p), ("state_stride", c_int64),
        ("channels", c_int64), ("taps", c_int64), ("batch", StateBatch),
    ]  # fmt: skip


class GatedDeltaParams(ctypes.Structure):
    _fields_ = [
        ("qkv", Matrix), ("a", Matrix), ("b", Matrix), ("rate", c_void_p), ("dt_bias", c_void_p), ("out", Matrix),
        ("state", c_void_p), ("state_stride", c_int64), ("key_heads", c_int64), ("value_heads", c_int64),
        ("key_dim", c_int64), ("value_dim", c_int64), ("batch", StateBatch),
    ]  # fmt: skip


class EmbeddingParams(ctypes.Structure):
    _fields_ = [
        ("ids", c_void_p), ("table", c_void_p), ("scale", c_void_p), ("layout", c_int32), ("table_dtype", c_int32),
        ("gguf_type", c_int32), ("out", Matrix), ("count", c_int64), ("vocab", c_int64), ("width", c_int64),
        ("multiplier", c_float),
    ]  # fmt: skip


class Experts(ctypes.Structure):
    _fields_ = [
        ("count", c_int64), ("starts", c_void_p), ("tokens", c_void_p), ("places", c_void_p), ("weights", c_void_p),
        ("top_k", c_int64), ("weight_bytes", c_int64), ("x_rows", c_int64),
    ]  # fmt: skip


class MatmulParams(ctypes.Structure):
    _fields_ = [
        ("x", Matrix), ("weight", c_void_p), ("weight_dtype", c_int32), ("in_blocks", c_bool), ("gguf_type", c_int32),
        ("scale", c_void_p), ("bias", c_void_p), ("bias_dtype", c_int32), ("norm", c_void_p), ("norm_eps", c_float),
        ("epilogue", c_int32), ("out", Matrix), ("m", c_int64), ("n", c_int64), ("k", c_int64), ("width", c_int64),
        ("experts", Experts),
    ]  # fmt: skip


class LoraParams(ctypes.Structure):
    _fields_ = [
        ("x", Matrix), ("slots", c_void_p), ("a", c_void_p), ("b", c_void_p), ("dtype", c_int32), ("ranks", c_void_p),
        ("panels", c_void_p), ("product", Matrix), ("out", Matrix), ("epilogue", c_int32), ("m", c_int64),
        ("k", c_int64), ("adapters", c_int64), ("parts", c_int64), ("rank", c_int64), ("num_panels", c_int64),
        ("width", c_int64),
    ]  # fmt: skip


class RouteParams(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p), ("row_stride", c_int64), ("bias", c_void_p), ("expert_scale", c_void_p),
        ("ids", c_void_p), ("weights", c_void_p), ("starts", c_void_p), ("order", c_void_p), ("places", c_void_p),
        ("tokens", c_int64), ("experts", c_int64), ("top_k", c_int64), ("groups", c_int64), ("top_groups", c_int64),
        ("group_best", c_int64), ("scoring", c_int32), ("normalize", c_bool), ("scale", c_float),
    ]  # fmt: skip


class KvCache(ctypes.Structure):
    _fields_ = [
        ("k", c_void_p), ("v", c_void_p), ("k_scale", c_void_p), ("v_scale", c_void_p), ("k_block_stride", c_int64),
        ("v_block_stride", c_int64), ("k_scale_block_stride", c_int64), ("v_scale_block_stride", c_int64),
        ("num_blocks", c_int64), ("kv_heads", c_int64), ("block_size", c_int64), ("head_dim", c_int64),
        ("dtype", c_int32),
    ]  # fmt: skip


class RopeKvWriteParams(ctypes.Structure):
    _fields_ = [
        ("q", Matrix), ("k", Matrix), ("v", Matrix), ("positions", c_void_p), ("slots", c_void_p),
        ("rotary", c_void_p), ("q_norm_weight", c_void_p), ("k_norm_weight", c_void_p), ("v_norm_weight", c_void_p),
        ("key_divisor", c_void_p), ("key_offset", c_void_p), ("query_scale", c_void_p), ("norm_eps", c_float),
        ("tokens", c_int64), ("heads", c_int64), ("rotary_dim", c_int64), ("q_norm_stride", c_int64),
        ("k_norm_stride", c_int64), ("layer_norm", c_bool), ("norm_last", c_bool), ("interleaved", c_bool),
        ("cache", KvCache),
    ]  # fmt: skip


class CopyBlocksParams(ctypes.Structure):
    _fields_ = [
        ("src", c_void_p), ("dst", c_void_p), ("pairs", c_void_p), ("count", c_int64), ("block_bytes", c_int64)
    ]  # fmt: skip


class PagedAttentionParams(ctypes.Structure):
    _fields_ = [
        ("q", Matrix), ("out", Matrix), ("cache", KvCache), ("block_tables", c_void_p), ("block_table_stride", c_int64),
        ("query_start", c_void_p), ("seq_lens", c_void_p), ("sinks", c_void_p), ("counters", c_void_p),
        ("scale", c_float), ("soft_cap", c_float), ("window", c_int64), ("tokens", c_int64), ("sequences", c_int64),
        ("heads", c_int64),
    ]  # fmt: skip


class RotateKeysParams(ctypes.Structure):
    _fields_ = [
        ("cache", KvCache), ("blocks", c_void_p), ("rotary", c_void_p), ("key_offset", c_void_p), ("count", c_int64),
        ("rotary_dim", c_int64),
    ]  # fmt: skip


class GatherKvParams(ctypes.Structure):
    _fields_ = [
        ("cache", KvCache), ("source", c_void_p), ("destination", c_void_p), ("indices", c_void_p), ("kept", c_int64)
    ]  # fmt: skip


class AttentionMassParams(ctypes.Structure):
    _fields_ = [
        ("q", Matrix), ("cache", KvCache), ("block_tables", c_void_p), ("block_table_stride", c_int64),
        ("query_start", c_void_p), ("seq_lens", c_void_p), ("first", c_void_p), ("sources", c_void_p),
        ("rows", c_void_p), ("mass", c_void_p), ("mass_row_stride", c_int64), ("mass_capacity", c_int64),
        ("scale", c_float), ("tokens", c_int64), ("sequences", c_int64), ("heads", c_int64),
    ]  # fmt: skip


class ScaleLogitsParams(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p), ("row_stride", c_int64), ("rows", c_int64), ("vocab", c_int64), ("scale", c_float),
        ("soft_cap", c_float),
    ]  # fmt: skip


class AdjustLogitsParams(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p), ("row_stride", c_int64), ("rows", c_int64), ("vocab", c_int64), ("repetition", c_void_p),
        ("presence", c_void_p), ("frequency", c_void_p), ("history", c_void_p), ("history_start", c_void_p),
        ("output_start", c_void_p), ("bias_ids", c_void_p), ("bias_values", c_void_p), ("bias_start", c_void_p),
    ]  # fmt: skip


class SampleParams(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p), ("row_stride", c_int64), ("rows", c_int64), ("vocab", c_int64),
        ("temperature", c_void_p), ("top_k", c_void_p), ("top_p", c_void_p), ("min_p", c_void_p), ("seeds", c_void_p),
        ("positions", c_void_p), ("masks", c_void_p), ("mask_rows", c_void_p),
        ("out", c_void_p),
    ]  # fmt: skip


class TokenLogprobsParams(ctypes.Structure):
    _fields_ = [
        ("logits", c_void_p), ("row_stride", c_int64), ("rows", c_int64), ("vocab", c_int64), ("tokens", c_void_p),
        ("num_top", c_int64), ("logprob", c_void_p), ("rank", c_void_p), ("top_ids", c_void_p),
        ("top_logprobs", c_void_p),
    ]  # fmt: skip


PARAMS = (
    NormParams, ActivationParams, GatedActivationParams, EmbeddingParams, MatmulParams, RouteParams, RopeKvWriteParams,
    CopyBlocksParams,
    PagedAttentionParams, RotateKeysParams, GatherKvParams, AttentionMassParams, AdjustLogitsParams, SampleParams,
    TokenLogprobsParams, XieluParams, ClampedSwigluParams, GateParams, GatedNormParams, CausalConvParams,
    GatedDeltaParams, LoraParams,
)  # fmt: skip

# How many fields a struct has is the longest list of initialisers it takes.
FIELDS = """
#include <cstddef>
#include <utility>
#include "cuda/kernels.h"
struct Any { template <class T> operator T() const; };
template <class T, size_t... I> constexpr bool takes(std::index_sequence<I...>) {
  return requires { T{(static_cast<void>(I), Any{})...}; };
}
template <class T, size_t kCount> constexpr bool has_fields =
    takes<T>(std::make_index_sequence<kCount>()) && !takes<T>(std::make_index_sequence<kCount + 1>());
"""


@cache
def check_params(params: tuple[type[ctypes.Structure], ...] = PARAMS) -> None:
    """RuntimeError unless these have the fields, offsets and sizes of csrc's structs of the same names."""
    lines = [FIELDS]
    inner = {kind: None for each in params for _, kind, *_ in each._fields_ if issubclass(kind, ctypes.Structure)}
    for each in (*inner, *params):
        name, fields = f"pybatch::{each.__name__}", each._fields_
        lines.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(each)} && has_fields<{name}, {len(fields)}>);")
        for field, kind, *_ in fields:
            place = f"offsetof({name}, {field}) == {getattr(each, field).offset}"
            lines.append(f"static_assert({place} && sizeof({name}::{field}) == {ctypes.sizeof(kind)});")
    compile.check("tests/simt/device.py does not have the params of csrc/pybatch", "\n".join(lines))


# ---- the runtime ----


def _load_runtime() -> ctypes.CDLL:
    lib = ctypes.CDLL(str(compile.runtime()), mode=ctypes.RTLD_GLOBAL)
    for name, result, arguments in (
        ("simt_allocate", c_void_p, [c_size_t, c_char_p, ctypes.c_int]),
        ("simt_release", None, [c_void_p]),
        ("simt_set_schedule", None, [c_uint64]),
        ("simt_set_os_threads", None, [c_uint]),
        ("simt_set_compute_capability", None, [ctypes.c_int]),
        ("simt_take_fault", None, [c_char_p, c_size_t]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


RUNTIME = _load_runtime()


def set_schedule(seed: int) -> None:
    """The order in which blocks and threads run: 0 ascending, else shuffled by the seed (odd: blocks descending)."""
    RUNTIME.simt_set_schedule(seed)


def raise_fault() -> None:
    """Raises SimtFault if a kernel has done something wrong since the last call."""
    text = ctypes.create_string_buffer(8192)
    RUNTIME.simt_take_fault(text, len(text))
    if message := text.value.decode():
        raise SimtFault(re.sub(r"(/\S+\.so)\+(0x[0-9a-f]+)", _source_line, message))


def _source_line(place: re.Match[str]) -> str:
    """The function and source line that a place in a library comes from: the innermost that is not the layer's own."""
    run = subprocess.run(["addr2line", "-Cfie", place[1], place[2]], capture_output=True, text=True)
    lines = run.stdout.splitlines()
    for function, line in zip(lines[::2], lines[1::2], strict=True):
        if str(compile.HERE / "include") not in line and function != "??":
            name = function.replace("(anonymous namespace)::", "").split("(")[0]
            return f"{name} ({Path(line).name})"
    return place[0]


class Buffers:
    """The device copies of the tensors of one call."""

    def __init__(self) -> None:
        self._all: list[tuple[int, Tensor | None, Tensor | None]] = []  # with what is to be written, and how it was

    def read(self, t: Tensor | None, name: str) -> int | None:
        """The address of a copy that the kernel may read."""
        return None if t is None else self._place(t, name, False)

    def write(self, t: Tensor | None, name: str) -> int | None:
        """The address of a copy that the kernel may write, and that is copied back."""
        return None if t is None else self._place(t, name, True)

    def workspace(self, size: int) -> int:
        pointer: int = RUNTIME.simt_allocate(size, b"workspace", 1)
        ctypes.memset(pointer, 0xFF, size)
        self._all.append((pointer, None, None))
        return pointer

    def matrix(self, t: Tensor | None, name: str, *, out: bool = False) -> Matrix:
        if t is None:
            return Matrix()
        stride = t.stride(0) if t.shape[0] > 1 else t.shape[1]
        return Matrix((self.write if out else self.read)(t, name), stride, DTYPES[t.dtype])

    def _place(self, t: Tensor, name: str, writable: bool) -> int:
        pointer: int = RUNTIME.simt_allocate(_span(t), name.encode(), writable)
        ctypes.memmove(pointer, t.data_ptr(), _span(t))
        kept = writable and t.numel() > 0
        self._all.append((pointer, t, _bytes(pointer, t).clone()) if kept else (pointer, None, None))
        return pointer

    def copy_back(self) -> None:
        """Elements only: what lies between them may be another tensor's, and the kernel must have left it alone."""
        for pointer, t, before in self._all:
            if t is not None and before is not None:
                after = _bytes(pointer, t)
                t.copy_(_elements(after, t))
                _elements(before, t).copy_(t)
                if not torch.equal(before, after):
                    raise SimtFault(f"a kernel wrote between the elements of a tensor of shape {list(t.shape)}")

    def release(self) -> None:
        for pointer, _, _ in self._all:
            RUNTIME.simt_release(pointer)


def _bytes(pointer: int, t: Tensor) -> Tensor:
    return torch.frombuffer((ctypes.c_uint8 * _span(t)).from_address(pointer), dtype=torch.uint8)


def _elements(memory: Tensor, t: Tensor) -> Tensor:
    """What t is a view of, in a copy of its bytes."""
    return torch.as_strided(memory.view(t.dtype), t.shape, t.stride())


def _span(t: Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    last = sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))
    return 0 if t.numel() == 0 else (last + 1) * t.itemsize


@contextmanager
def buffers() -> Iterator[Buffers]:
    held = Buffers()
    try:
        yield held
        raise_fault()
        held.copy_back()
    finally:
        held.release()


def kv_cache(b: Buffers, k: Tensor, v: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, out: bool) -> KvCache:
    place = b.write if out else b.read
    strides = [0 if t is None else t.stride(0) for t in (k, v, k_scale, v_scale)]
    pointers = [
        place(k, "k_cache"), place(v, "v_cache"), place(k_scale, "k_scale"), place(v_scale, "v_scale")
    ]  # fmt: skip
    dtype = INT4 if k.dtype == torch.uint8 else DTYPES[k.dtype]
    return KvCache(*pointers, *strides, len(k), k.shape[1], k.shape[3], head_dim(k), dtype)


def head_dim(k: Tensor) -> int:
    return k.shape[2] * (2 if k.dtype == torch.uint8 else 1)


class SimtOps:
    """The ops of one library of kernels; signatures and semantics are those of pybatch.ops."""

    def __init__(self, path: Path | None = None, capability: int = 86) -> None:
        """path: by default the library of all kernels, compiled when it is first used; capability: 86 for 8.6."""
        self.path, self._capability = path, capability

    @cached_property
    def _lib(self) -> ctypes.CDLL:
        check_params()
        return ctypes.CDLL(str(self.path or compile.library()))

    def __getattr__(self, name: str) -> Any:
        return getattr(ops, name)  # what runs no kernel: packing, quantising

    def _function(self, name: str, params: ctypes.Structure, *more: str) -> ctypes._NamedFuncPointer:
        """pybatch::cuda::name(const Params&, more..., cudaStream_t), by its mangled name (Itanium C++ ABI)."""
        RUNTIME.simt_set_compute_capability(self._capability)
        kind = type(params).__name__
        return getattr(self._lib, f"_ZN7pybatch4cuda{len(name)}{name}ERKNS_{len(kind)}{kind}E{''.join(more)}")

    def _run(self, name: str, params: ctypes.Structure) -> None:
        self._function(name, params, "P11CUstream_st")(ctypes.byref(params), None)

    def _run_with_workspace(self, b: Buffers, name: str, params: ctypes.Structure) -> None:
        size = self._function(f"{name}_workspace", params)
        size.restype = c_size_t
        workspace = c_void_p(b.workspace(size(ctypes.byref(params))))
        self._function(name, params, "Pv", "P11CUstream_st")(ctypes.byref(params), workspace, None)

    def rms_norm(
        self, x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, out: Tensor | None = None
    ) -> Tensor:
        return self._norm("rms_norm", x, weight, None, eps, residual, out)

    def layer_norm(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        return self._norm("layer_norm", x, weight, bias, eps, residual, out)

    def _norm(
        self, name: str, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, residual: Tensor | None,
        out: Tensor | None,
    ) -> Tensor:  # fmt: skip
        out = poisoned(*x.shape, dtype=x.dtype) if out is None else out
        with buffers() as b:
            self._run(
                name,
                NormParams(
                    b.matrix(x, "x"), b.matrix(residual, "residual", out=True), b.matrix(out, "out", out=True),
                    b.read(weight, "weight"), b.read(bias, "bias"), eps, *x.shape,
                ),
            )  # fmt: skip
        return out

    def gelu(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._activation("gelu", x, out)

    def gelu_tanh(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._activation("gelu_tanh", x, out)

    def relu2(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._activation("relu2", x, out)

    def xielu(
        self, x: Tensor, out: Tensor | None = None, *, alpha_p: float, alpha_n: float, beta: float = 0.5,
        eps: float = -1e-6,
    ) -> Tensor:  # fmt: skip
        return self._activation("xielu", x, out, alpha_p, alpha_n, beta, eps)

    def _activation(self, name: str, x: Tensor, out: Tensor | None, *numbers: float) -> Tensor:
        out = poisoned(*x.shape, dtype=x.dtype) if out is None else out
        with buffers() as b:
            kind = XieluParams if numbers else ActivationParams
            self._run(name, kind(b.matrix(x, "x"), b.matrix(out, "out", out=True), *x.shape, *numbers))
        return out

    def add_normed(
        self,
        x: Tensor,
        residual: Tensor,
        weight: Tensor | None = None,
        eps: float = 0.0,
        factor: float = 1.0,
        scale: float = 1.0,
    ) -> Tensor:
        with buffers() as b:
            self._run(
                "add_normed",
                AddNormedParams(
                    b.matrix(x, "x"), b.matrix(residual, "residual", out=True), b.read(weight, "weight"), eps, factor,
                    scale, *x.shape,
                ),
            )  # fmt: skip
        return residual

    def silu_mul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._gated("silu_mul", x, out)

    def gelu_tanh_mul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return self._gated("gelu_tanh_mul", x, out)

    def clamped_swiglu(
        self, x: Tensor, out: Tensor | None = None, *, alpha: float = 1.702, limit: float = 7.0
    ) -> Tensor:
        return self._gated("clamped_swiglu", x, out, alpha, limit)

    def _gated(self, name: str, x: Tensor, out: Tensor | None, *numbers: float) -> Tensor:
        rows, width = x.shape[0], x.shape[1] // 2
        out = poisoned(rows, width, dtype=x.dtype) if out is None else out
        with buffers() as b:
            kind = ClampedSwigluParams if numbers else GatedActivationParams
            self._run(name, kind(b.matrix(x, "x"), b.matrix(out, "out", out=True), rows, width, *numbers))
        return out

    def sigmoid_mul(self, x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
        return self._gate("sigmoid_mul", x, gate, out)

    def gelu_tanh_gate(self, x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
        return self._gate("gelu_tanh_gate", x, gate, out)

    def _gate(self, name: str, x: Tensor, gate: Tensor, out: Tensor | None) -> Tensor:
        out = poisoned(*x.shape, dtype=x.dtype) if out is None else out
        with buffers() as b:
            params = GateParams(b.matrix(x, "x"), b.matrix(gate, "gate"), b.matrix(out, "out", out=True), *x.shape)
            self._run(name, params)
        return out

    def gated_rms_norm(self, x: Tensor, gate: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
        out = poisoned(*x.shape, dtype=x.dtype) if out is None else out
        with buffers() as b:
            self._run(
                "gated_rms_norm",
                GatedNormParams(
                    b.matrix(x, "x"), b.matrix(gate, "gate"), b.matrix(out, "out", out=True), b.read(weight, "weight"),
                    eps, len(x), x.shape[1] // len(weight), len(weight),
                ),
            )  # fmt: skip
        return out

    def causal_conv(
        self, x: Tensor, weight: Tensor, state: Tensor, query_start: Tensor, source: Tensor, destination: Tensor,
        out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        out = poisoned(*x.shape, dtype=x.dtype) if out is None else out
        with buffers() as b:
            self._run(
                "causal_conv",
                CausalConvParams(
                    b.matrix(x, "x"), b.matrix(out, "out", out=True), b.read(weight, "weight"),
                    b.write(state, "state"), state.stride(0), x.shape[1], len(weight),
                    state_batch(b, query_start, source, destination, len(x)),
                ),
            )  # fmt: skip
        return out

    def gated_delta_rule(
        self, qkv: Tensor, a: Tensor, b: Tensor, rate: Tensor, dt_bias: Tensor, state: Tensor, query_start: Tensor,
        source: Tensor, destination: Tensor, out: Tensor,
    ) -> Tensor:  # fmt: skip
        key_dim, value_dim = state.shape[2], out.shape[1] // len(rate)
        with buffers() as held:
            self._run(
                "gated_delta_rule",
                GatedDeltaParams(
                    held.matrix(qkv, "qkv"), held.matrix(a, "a"), held.matrix(b, "b"), held.read(rate, "rate"),
                    held.read(dt_bias, "dt_bias"), held.matrix(out, "out", out=True), held.write(state, "state"),
                    state.stride(0), (qkv.shape[1] - out.shape[1]) // (2 * key_dim), len(rate), key_dim, value_dim,
                    state_batch(held, query_start, source, destination, len(qkv)),
                ),
            )  # fmt: skip
        return out

    def add_lora(
        self, x: Tensor, slots: Tensor, lora: ops.Lora, product: Tensor, out: Tensor | None = None, *,
        epilogue: ops.Epilogue = ops.STORE,
    ) -> Tensor:  # fmt: skip
        if not len(x):
            return product if out is None else out
        adapters, parts, runs, k, _ = lora.a.shape
        with buffers() as b:
            self._run_with_workspace(
                b,
                "add_lora",
                LoraParams(
                    b.matrix(x, "x"), b.read(slots, "slots"), b.read(lora.a, "a"), b.read(lora.b, "b"),
                    DTYPES[lora.a.dtype], b.read(lora.ranks, "ranks"), b.read(lora.panels, "panels"),
                    b.matrix(product, "product", out=True), b.matrix(out, "out", out=True), epilogue, len(x), k,
                    adapters, parts, runs * ops.PANEL, len(lora.panels), 0 if out is None else out.shape[1],
                ),
            )  # fmt: skip
        return product if out is None else out

    def embedding(
        self, ids: Tensor, table: Tensor, out: Tensor, vocab: int, scale: Tensor | None = None, multiplier: float = 1.0
    ) -> Tensor:
        gguf = table.dim() == 3 and table.dtype in (torch.uint8, torch.int8)
        scaled = 3 if table.dim() == 5 else 2
        layout = 4 if gguf else 0 if table.dim() == 2 else 1 if scale is None else scaled
        with buffers() as b:
            self._run(
                "embedding",
                EmbeddingParams(
                    b.read(ids, "ids"), b.read(table, "table"), b.read(scale, "scale"), layout,
                    DTYPES.get(table.dtype, 0), gguf_type(table), b.matrix(out, "out", out=True), len(ids), vocab,
                    out.shape[1], multiplier,
                ),
            )  # fmt: skip
        return out

    def rope_kv_write(
        self, q: Tensor, k: Tensor | None, v: Tensor | None, positions: Tensor, slots: Tensor | None, rotary: Tensor,
        k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None = None, v_scale: Tensor | None = None, *,
        interleaved: bool = False, q_norm: Tensor | None = None, k_norm: Tensor | None = None,
        v_norm: Tensor | None = None, norm_eps: float = 1e-6,
        layer_norm: bool = False, norm_last: bool = False, query_scale: Tensor | None = None,
        key_divisor: Tensor | None = None, key_offset: Tensor | None = None,
    ) -> None:  # fmt: skip
        kv = (k, "k"), (v, "v")
        with buffers() as b:
            self._run(
                "rope_kv_write",
                RopeKvWriteParams(
                    b.matrix(q, "q", out=True), *(b.matrix(x, name) if x is not None else Matrix() for x, name in kv),
                    b.read(positions, "positions"),
                    b.read(slots, "slots"), b.read(rotary, "rotary"), b.read(q_norm, "q_norm"),
                    b.read(k_norm, "k_norm"), b.read(v_norm, "v_norm"), b.read(key_divisor, "key_divisor"),
                    b.read(key_offset, "key_offset"), b.read(query_scale, "query_scale"), norm_eps, len(q),
                    q.shape[1] // head_dim(k_cache), rotary.shape[1],
                    *(0 if norm is None or norm.dim() == 1 else head_dim(k_cache) for norm in (q_norm, k_norm)),
                    layer_norm, norm_last, interleaved, kv_cache(b, k_cache, v_cache, k_scale, v_scale, out=True),
                ),
            )  # fmt: skip

    def copy_blocks(self, pool: Tensor, pairs: Tensor) -> None:
        with buffers() as b:
            p = b.write(pool, "pool")
            self._run("copy_blocks", CopyBlocksParams(p, p, b.read(pairs, "pairs"), len(pairs), pool[0].nbytes))

    def swap_blocks(self, src: Tensor, dst: Tensor, pairs: Tensor) -> None:
        with buffers() as b:
            params = CopyBlocksParams(
                b.read(src, "src"), b.write(dst, "dst"), b.read(pairs, "pairs"), len(pairs), src[0].nbytes
            )
            self._run("copy_blocks", params)

    def paged_attention(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, block_tables: Tensor, query_start: Tensor, seq_lens: Tensor,
        scale: float, *, k_scale: Tensor | None = None, v_scale: Tensor | None = None, window: int = 0,
        soft_cap: float = 0.0, sinks: Tensor | None = None, counters: Tensor | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        out = poisoned(*q.shape, dtype=q.dtype) if out is None else out
        heads = q.shape[1] // head_dim(k_cache)
        if counters is None:
            counters = torch.zeros(1 + len(seq_lens) * heads, dtype=torch.int32)
        with buffers() as b:
            self._run_with_workspace(
                b,
                "paged_attention",
                PagedAttentionParams(
                    b.matrix(q, "q"), b.matrix(out, "out", out=True),
                    kv_cache(b, k_cache, v_cache, k_scale, v_scale, out=False), b.read(block_tables, "block_tables"),
                    block_tables.stride(0), b.read(query_start, "query_start"), b.read(seq_lens, "seq_lens"),
                    b.read(sinks, "sinks"), b.write(counters, "counters"), scale, soft_cap, window, len(q),
                    len(seq_lens), heads,
                ),
            )  # fmt: skip
        if counters.any():
            raise SimtFault(f"counters are not zeros again, but {counters.tolist()}")
        return out

    def rotate_keys(
        self, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, blocks: Tensor,
        rotary: Tensor, key_offset: Tensor | None = None,
    ) -> None:  # fmt: skip
        with buffers() as b:
            self._run(
                "rotate_keys",
                RotateKeysParams(
                    kv_cache(b, k_cache, v_cache, k_scale, v_scale, out=True), b.read(blocks, "blocks"),
                    b.read(rotary, "rotary"), b.read(key_offset, "key_offset"), *rotary.shape,
                ),
            )  # fmt: skip

    def gather_kv(
        self, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None, source: Tensor,
        indices: Tensor, destination: Tensor,
    ) -> None:  # fmt: skip
        with buffers() as b:
            self._run(
                "gather_kv",
                GatherKvParams(
                    kv_cache(b, k_cache, v_cache, k_scale, v_scale, out=True), b.read(source, "source"),
                    b.read(destination, "destination"), b.read(indices, "indices"), indices.shape[1],
                ),
            )  # fmt: skip

    def attention_mass(
        self, q: Tensor, k_cache: Tensor, v_cache: Tensor, k_scale: Tensor | None, v_scale: Tensor | None,
        block_tables: Tensor, query_start: Tensor, seq_lens: Tensor, scale: float, *, first: Tensor, sources: Tensor,
        rows: Tensor, mass: Tensor,
    ) -> None:  # fmt: skip
        with buffers() as b:
            self._run_with_workspace(
                b,
                "attention_mass",
                AttentionMassParams(
                    b.matrix(q, "q"), kv_cache(b, k_cache, v_cache, k_scale, v_scale, out=False),
                    b.read(block_tables, "block_tables"), block_tables.stride(0), b.read(query_start, "query_start"),
                    b.read(seq_lens, "seq_lens"), b.read(first, "first"), b.read(sources, "sources"),
                    b.read(rows, "rows"), b.write(mass, "mass"), mass.stride(0), mass.shape[2], scale, len(q),
                    len(seq_lens), q.shape[1] // head_dim(k_cache),
                ),
            )  # fmt: skip

    def matmul_dense(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor, **fused: Unpack[Fused]
    ) -> Tensor:
        with self._matmul(x, weight, None, bias, out, **fused) as (_, params):
            self._run("matmul_dense", params)
        return out

    def matmul_w8a16(
        self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, out: Tensor,
        **fused: Unpack[Fused],
    ) -> Tensor:  # fmt: skip
        with self._matmul(x, weight, scale, bias, out, **fused) as (_, params):
            of_float8 = "matmul_e4m3_blocks" if params.in_blocks else "matmul_e4m3"
            self._run(of_float8 if weight.dtype == torch.float8_e4m3fn else "matmul_w8a16", params)
        return out

    def matmul_w8a8(
        self, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None, *, out: Tensor,
        **fused: Unpack[Fused],
    ) -> Tensor:  # fmt: skip
        with self._matmul(x, weight, scale, bias, out, norm_apart=False, **fused) as (b, params):
            self._run_with_workspace(b, "matmul_w8a8", params)
        return out

    def matmul_gguf(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor, **fused: Unpack[Fused]
    ) -> Tensor:
        with self._matmul(x, weight, None, bias, out, **fused) as (b, params):
            self._run_with_workspace(b, "matmul_gguf", params)
        return out

    @contextmanager
    def _matmul(
        self, x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, out: Tensor, *,
        norm: Tensor | None = None, norm_eps: float = 0.0, epilogue: int = 0, norm_apart: bool = True,
        experts: ops.Experts | None = None,
    ) -> Iterator[tuple[Buffers, MatmulParams]]:  # fmt: skip
        """What the binding does around a matmul's kernel."""
        if norm is not None and norm_apart:
            x, norm = self.rms_norm(x, norm, norm_eps), None
        with buffers() as b:
            rows, width = x.shape[0], out.shape[1]
            routed = Experts()
            if experts is not None:
                rows = rows if experts.tokens is None else len(experts.tokens)
                names = ("starts", "tokens", "places", "weights")
                pointers = (b.read(tensor, name) for tensor, name in zip(experts, names, strict=True))
                top_k = 0 if experts.places is None else experts.places.shape[1]
                routed = Experts(len(weight), *pointers, top_k, weight[0].nbytes, x.shape[0])
            params = MatmulParams(
                b.matrix(x, "x"), b.read(weight, "weight"), DTYPES.get(weight.dtype, 0),
                weight.dim() == 5 + (experts is not None), gguf_type(weight), b.read(scale, "scale"),
                b.read(bias, "bias"), 0 if bias is None else DTYPES[bias.dtype],
                b.read(norm, "norm"), norm_eps, epilogue, b.matrix(out, "out", out=True),
                rows, width if epilogue < 2 else -(-width // 16) * 32, x.shape[1], width, routed,
            )  # fmt: skip
            if not routed.places:
                yield b, params
                return
            products = b.workspace(rows * width * out.itemsize)
            unsummed = MatmulParams.from_buffer_copy(params)
            unsummed.out, unsummed.epilogue = Matrix(products, width, DTYPES[out.dtype]), 0
            yield b, unsummed
            arguments = ctypes.byref(params), c_void_p(products), None
            self._function("sum_over_experts", params, "PKv", "P11CUstream_st")(*arguments)

    def route_experts(
        self, logits: Tensor, top_k: int, *, bias: Tensor | None = None, expert_scale: Tensor | None = None,
        scoring: int = 0, groups: int = 1, top_groups: int = 1, group_best: int = 1, normalize: bool = False,
        scale: float = 1.0,
    ) -> ops.Routing:  # fmt: skip
        tokens, experts = logits.shape
        routing = ops.Routing.empty(tokens, experts, top_k)
        for tensor in routing:
            tensor.view(torch.uint8).fill_(0xFF)
        with buffers() as b:
            names = ("ids", "weights", "starts", "order", "places")
            outs = [b.write(tensor, name) for tensor, name in zip(routing, names, strict=True)]
            params = RouteParams(
                b.read(logits, "logits"), logits.stride(0), b.read(bias, "bias"),
                b.read(expert_scale, "expert_scale"), *outs, tokens, experts, top_k,
                groups, top_groups, group_best, scoring, normalize, scale,
            )  # fmt: skip
            self._run("route_experts", params)
        return routing

    def scale_logits(self, logits: Tensor, scale: float = 1.0, soft_cap: float = 0.0) -> Tensor:
        with buffers() as b:
            params = ScaleLogitsParams(b.write(logits, "logits"), logits.stride(0), *logits.shape, scale, soft_cap)
            self._run("scale_logits", params)
        return logits

    def adjust_logits(
        self, logits: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor, history: Tensor,
        history_start: Tensor, output_start: Tensor, bias_ids: Tensor, bias_values: Tensor, bias_start: Tensor,
    ) -> None:  # fmt: skip
        with buffers() as b:
            self._run_with_workspace(
                b,
                "adjust_logits",
                AdjustLogitsParams(
                    b.write(logits, "logits"), logits.stride(0), *logits.shape, b.read(repetition, "repetition"),
                    b.read(presence, "presence"), b.read(frequency, "frequency"), b.read(history, "history"),
                    b.read(history_start, "history_start"), b.read(output_start, "output_start"),
                    b.read(bias_ids, "bias_ids"), b.read(bias_values, "bias_values"), b.read(bias_start, "bias_start"),
                ),
            )  # fmt: skip

    def sample(
        self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor,
        positions: Tensor, *, masks: Tensor | None = None, mask_rows: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        out = poisoned(len(logits), dtype=torch.int64)
        with buffers() as b:
            self._run(
                "sample",
                SampleParams(
                    b.read(logits, "logits"), logits.stride(0), *logits.shape, b.read(temperature, "temperature"),
                    b.read(top_k, "top_k"), b.read(top_p, "top_p"), b.read(min_p, "min_p"), b.read(seeds, "seeds"),
                    b.read(positions, "positions"), b.read(masks, "masks"), b.read(mask_rows, "mask_rows"),
                    b.write(out, "out"),
                ),
            )  # fmt: skip
        return out

    def token_logprobs(self, logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows = len(logits)
        outs = (
            poisoned(rows, dtype=torch.float32), poisoned(rows, dtype=torch.int64),
            poisoned(rows, num_top, dtype=torch.int64), poisoned(rows, num_top, dtype=torch.float32),
        )  # fmt: skip
        with buffers() as b:
            names = ("logprob", "rank", "top_ids", "top_logprobs")
            logprob, *rest = (b.write(out, name) for out, name in zip(outs, names, strict=True))
            self._run(
                "token_logprobs",
                TokenLogprobsParams(
                    b.read(logits, "logits"), logits.stride(0), *logits.shape, b.read(tokens, "tokens"), num_top,
                    logprob, *rest,
                ),
            )  # fmt: skip
        return outs


def state_batch(b: Buffers, query_start: Tensor, source: Tensor, destination: Tensor, tokens: int) -> StateBatch:
    names = ("query_start", "source", "destination")
    places = [b.read(t, name) for t, name in zip((query_start, source, destination), names, strict=True)]
    return StateBatch(*places, len(source), tokens)


def gguf_type(weight: Tensor) -> int:
    """The place in the enum of a packed GGUF weight's type, which its dtype and block size tell."""
    types = [(block.dtype, ops.PANEL * block.bytes) for block in ops.GGUF_BLOCKS.values()]
    found = (weight.dtype, weight.shape[-1])
    return types.index(found) if found in types else 0


def poisoned(*shape: int, dtype: torch.dtype) -> Tensor:
    """NaN, or -1: what no kernel leaves by chance."""
    out = torch.empty(shape, dtype=dtype)
    out.view(torch.uint8).fill_(0xFF)
    return out
