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

from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

torch.ops.load_library(Path(__file__).with_name("libpybatch_cpu.so"))  # type: ignore[no-untyped-call]

from pybatch import _C  # noqa: E402  (links against the library above)

ISA: str = _C.chosen_isa()  # raises ValueError if PYBATCH_ISA cannot run here

CUDA: bool = not _C.why_no_cuda() and torch.cuda.is_available()  # the ops take CUDA tensors too
if CUDA:
    torch.ops.load_library(Path(__file__).with_name("libpybatch_cuda.so"))  # type: ignore[no-untyped-call]

CpuGraph = _C.Graph  # `with graph:` records CPU ops instead of running them; graph.replay() runs them

PANEL = 16  # columns in one panel of packed weights
LATENT_STEP = 16  # that the width of a cache of latents is a multiple of
INT4_GROUP = 32  # elements of a head that share a scale in an int4 KV cache


class Epilogue(IntEnum):
    """What a matmul does with its product, rounded to out's dtype first."""

    STORE = 0  # out = product
    ADD = 1  # out += product
    SILU_MUL = 2  # out = silu(gate) * up, the product of weights that interleave_gate_up has interleaved
    GELU_TANH_MUL = 3  # likewise with the tanh form of GELU


STORE = Epilogue.STORE


class Scoring(IntEnum):
    """What a router's logits become: the scores by which experts are chosen, and which then weight them."""

    SOFTMAX = 0
    SIGMOID = 1
    TOP_K_SOFTMAX = 2  # chosen by the logits themselves; the weights are the softmax of those chosen


class Experts(NamedTuple):
    """Which rows of a matmul's product each expert's weights multiply, and what becomes of them; see Routing."""

    starts: Tensor  # [E + 1] int32, ascending from 0: rows starts[e] to starts[e + 1] are expert e's
    tokens: Tensor | None = None  # [rows] int32: the row of x of each; None: its own
    places: Tensor | None = None  # [T, k] int32: the rows that are summed, times weights, to each row of out
    weights: Tensor | None = None  # [T, k] float32


class Routing(NamedTuple):
    """The experts that each of T tokens goes to, out of E. Made by route_experts."""

    ids: Tensor  # [T, k] int32, ascending in each row
    weights: Tensor  # [T, k] float32
    starts: Tensor  # [E + 1] int32: where each expert's tokens begin in `order`
    order: Tensor  # [T * k] int32: the tokens of expert 0, of expert 1, ..., ascending
    places: Tensor  # [T, k] int32: where each is in `order`

    @classmethod
    def empty(cls, tokens: int, experts: int, top_k: int, device: torch.device | None = None) -> Routing:
        def make(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        weights = make(tokens, top_k, dtype=torch.float32)
        return cls(make(tokens, top_k), weights, make(experts + 1), make(tokens * top_k), make(tokens, top_k))

    def gathered(self) -> Experts:
        """For a matmul that takes rows of tokens, [T, K], to rows of pairs of a token and an expert, [T * k, N]."""
        return Experts(self.starts, self.order)

    def summed(self) -> Experts:
        """For a matmul of such rows, [T * k, K], whose products are weighted and summed to rows of tokens, [T, N]."""
        return Experts(self.starts, None, self.places, self.weights)


_CACHED = 1 << 19  # elements whose fp32 copies stay in cache while they are worked on

_ops = torch.ops.pybatch


def _register_fake(name: str) -> None:
    """Ops write into given tensors, so with fake tensors there is nothing to compute. But torch also calls the fake for
    real tensors with a meta tensor among them."""
    parameters = [argument.name for argument in getattr(_ops, name).default._schema.arguments]

    def fake(*args: Any, **kwargs: Any) -> None:
        given = {**dict(zip(parameters, args, strict=False)), **kwargs}
        devices = {key: value.device for key, value in given.items() if isinstance(value, Tensor)}
        expected = next((device for device in devices.values() if device.type != "meta"), None)
        if expected is None:
            return
        for argument, device in devices.items():
            if device != expected and (device.type == "meta" or name != "swap_blocks"):
                raise RuntimeError(f"{argument}: expected a tensor on {expected}, got one on {device}")

    torch.library.register_fake(f"pybatch::{name}", fake)


for _name in torch._C._dispatch_get_all_op_names():
    if _name.startswith("pybatch::"):
        _register_fake(_name.removeprefix("pybatch::"))


def rms_norm(
    x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang & Sennrich 2019).

    x: [rows, width] F; weight: [width] of x's dtype; out: like x. With residual ([rows, width], x's dtype),
    ``residual += x`` first, in place, and the sum is normalised.
    """
    out = torch.empty_like(x) if out is None else out
    _ops.rms_norm.default(x, weight, eps, residual, out)
    return out


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last dimension (Ba et al. 2016); else as rms_norm."""
    out = torch.empty_like(x) if out is None else out
    _ops.layer_norm.default(x, weight, bias, eps, residual, out)
    return out


def gelu(x: Tensor, out: Tensor | None = None) -> Tensor:
    """x times the normal distribution's share below x (Hendrycks & Gimpel 2016). x, out: [rows, width] F; out may be
    x."""
    out = torch.empty_like(x) if out is None else out
    _ops.gelu.default(x, out)
    return out


def gelu_tanh(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The tanh form of GELU; else as gelu."""
    out = torch.empty_like(x) if out is None else out
    _ops.gelu_tanh.default(x, out)
    return out


def relu2(x: Tensor, out: Tensor | None = None) -> Tensor:
    """max(x, 0)^2 (So et al. 2021); else as gelu."""
    out = torch.empty_like(x) if out is None else out
    _ops.relu2.default(x, out)
    return out


def xielu(
    x: Tensor, out: Tensor | None = None, *, alpha_p: float, alpha_n: float, beta: float = 0.5, eps: float = -1e-6
) -> Tensor:
    """alpha_p * x^2 + beta * x above 0, else alpha_n * (exp(min(x, eps)) - 1 - x) + beta * x (Huang 2024); shapes as
    gelu."""
    out = torch.empty_like(x) if out is None else out
    _ops.xielu.default(x, alpha_p, alpha_n, beta, eps, out)
    return out


def add_normed(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    eps: float = 0.0,
    factor: float = 1.0,
    scale: float = 1.0,
) -> Tensor:
    """residual = (residual + factor * rms_norm(x, weight, eps)) * scale, in place, with the bits of the separate ops;
    without weight, x for its norm. x, residual: [rows, width] F; weight: [width] of x's dtype. Returns residual."""
    _ops.add_normed.default(x, weight, eps, factor, scale, residual)
    return residual


def silu_mul(x: Tensor, out: Tensor | None = None) -> Tensor:
    """silu(gate) * up. x: [rows, 2 * width] F, gate in the first half of the columns; out: [rows, width]."""
    out = x.new_empty(x.shape[0], x.shape[1] // 2) if out is None else out
    _ops.silu_mul.default(x, out)
    return out


def gelu_tanh_mul(x: Tensor, out: Tensor | None = None) -> Tensor:
    """gelu(gate) * up with the tanh form of GELU (Hendrycks & Gimpel 2016); shapes as silu_mul."""
    out = x.new_empty(x.shape[0], x.shape[1] // 2) if out is None else out
    _ops.gelu_tanh_mul.default(x, out)
    return out


def clamped_swiglu(x: Tensor, out: Tensor | None = None, *, alpha: float = 1.702, limit: float = 7.0) -> Tensor:
    """gate * sigmoid(alpha * gate) * (up + 1), of gates up to limit and ups from -limit to limit (gpt-oss); shapes as
    silu_mul."""
    out = x.new_empty(x.shape[0], x.shape[1] // 2) if out is None else out
    _ops.clamped_swiglu.default(x, alpha, limit, out)
    return out


def sigmoid_mul(x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """x * sigmoid(gate). x, gate, out: [rows, width] F; out may be x."""
    out = torch.empty_like(x) if out is None else out
    _ops.sigmoid_mul.default(x, gate, out)
    return out


def gelu_tanh_gate(x: Tensor, gate: Tensor, out: Tensor | None = None) -> Tensor:
    """x * gelu_tanh(gate); shapes as sigmoid_mul."""
    out = torch.empty_like(x) if out is None else out
    _ops.gelu_tanh_gate.default(x, gate, out)
    return out


def embedding(
    ids: Tensor, table: Tensor, out: Tensor, vocab: int, scale: Tensor | None = None, multiplier: float = 1.0
) -> Tensor:
    """out[i] = table[ids[i]] * multiplier, computed in float32 and converted to out's dtype.

    ids: [n] int64 in [0, vocab); out: [n, width] F. table: [vocab, width] F, or weights as packed by pack_dense or
    (with scale [vocab] float32) pack_int8, or pack_gguf, so that tied embeddings need one copy.
    """
    _ops.embedding.default(ids, table, scale, vocab, multiplier, out)
    return out


def take_rows(x: Tensor, rows: Tensor | list[int], out: Tensor | None = None) -> Tensor:
    """x[rows] on the threads of the other kernels. torch's own indexing wakes OpenMP's, which spin for milliseconds
    afterwards and take processors from these.

    x: [n, width] F. rows: [m] int64 in [0, n), or a list. out: [m, width] F.
    """
    if isinstance(rows, list):
        rows = torch.tensor(rows, dtype=torch.int64, device=x.device)
    return embedding(rows, x, x.new_empty(len(rows), x.shape[1]) if out is None else out, len(x))


def packed_dense_shape(n: int, k: int, dtype: torch.dtype) -> tuple[int, ...]:
    """Of pack_dense's result for [n, k] weights."""
    panels, group = -(-n // PANEL), 4 // dtype.itemsize
    return (panels, k, PANEL) if group == 1 else (panels, -(-k // group), PANEL, group)


def pack_dense(weight: Tensor) -> Tensor:
    """Packs [N, K] F weights for matmul_dense, zero-padded: [ceil(N/16), K, 16], or of 16 bits, with K in pairs,
    [ceil(N/16), ceil(K/2), 16, 2]."""
    n, k = weight.shape
    packed, group = weight.new_empty(packed_dense_shape(n, k, weight.dtype)), 4 // weight.element_size()
    if not packed.numel():
        return packed
    if n % PANEL or k % group:
        weight = torch.nn.functional.pad(weight, (0, -k % group, 0, -n % PANEL))
    words = packed.view(torch.int32).view(packed.shape[:3])  # a column's group of four bytes in one piece
    words.copy_(weight.contiguous().view(torch.int32).view(packed.shape[0], PANEL, -1).transpose(1, 2))
    return packed


def interleave_gate_up(gate: Tensor, up: Tensor) -> Tensor:
    """16 rows of gate, then 16 of up, and so on, padded with zeros: the weights that SILU_MUL and GELU_TANH_MUL take.

    gate, up: [N, ...]. Returns [2 * ceil(N/16) * 16, ...].
    """
    panels = -(-len(gate) // PANEL)
    both = gate.new_zeros(2, panels * PANEL, *gate.shape[1:])
    both[0, : len(gate)], both[1, : len(up)] = gate, up
    interleaved = both.view(2, panels, PANEL, *gate.shape[1:]).transpose(0, 1)
    return interleaved.reshape(2 * panels * PANEL, *gate.shape[1:])


def matmul_dense(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """x @ weight^T + bias, summed in fp32 in ascending K.

    x: [M, K] F; weight: from pack_dense of [N, K], F; bias: [N] F; out: [M, N] F, or [M, up to N / 2] if the epilogue
    multiplies gate and up. norm: [K] of x's dtype, to multiply rms_norm(x, norm, norm_eps) instead of x. epilogue: what
    is done with the product. All matmuls take these, with the bits of the separate ops.

    experts (mixture of experts, Shazeer et al. 2017): each row is multiplied by its expert's weights: weight is a stack
    of them, [E, *packed shape], like bias and int8's scale, [E, N]. A row's product has the bits that it has with these
    weights alone. Products that are summed over a token's experts are rounded to out's dtype, then added up times their
    weights in ascending j by one fp32 fma each, and rounded; the epilogue, STORE or ADD, takes the sum.
    """
    if experts is None:
        _ops.matmul_dense.default(x, weight, bias, norm, norm_eps, epilogue, out)
    else:
        _ops.experts_dense.default(x, weight, bias, norm, norm_eps, epilogue, *experts, out)
    return out


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric int8 per output channel: [N, K] F -> q [N, K] int8 in [-127, 127], scale [N] float32, w ~ q * scale."""
    n, k = weight.shape
    q, scale = weight.new_empty(n, k, dtype=torch.int8), weight.new_empty(n, dtype=torch.float32)
    rows = max(1, _CACHED // max(1, k))
    for first in range(0, n, rows):
        part = slice(first, first + rows)
        w = weight[part].float()
        scale[part] = w.abs().amax(dim=1) / 127
        inverse = torch.where(scale[part] > 0, 1 / scale[part], 0.0)
        q[part] = (w * inverse[:, None]).round_().clamp_(-127, 127)
    return q, scale


def pack_int8(q: Tensor) -> Tensor:
    """Packs [N, K] int8 weights for the int8 matmuls: [ceil(N/16), ceil(K/4) + 1, 16, 4] int8, zero-padded.

    The last group of a panel holds its 16 column sums as int32 (for u8 x s8 dot products).
    """
    n, k = q.shape
    panels, groups = -(-n // PANEL), -(-k // 4)
    if (n, k) != (panels * PANEL, groups * 4):
        q = torch.nn.functional.pad(q, (0, groups * 4 - k, 0, panels * PANEL - n))
    packed = q.new_empty(panels, groups + 1, PANEL, 4)
    words = packed.view(torch.int32).view(panels, groups + 1, PANEL)  # a column's group of four in one piece
    words[:, :groups] = q.contiguous().view(torch.int32).view(panels, PANEL, groups).transpose(1, 2)
    words[:, groups] = q.sum(1, dtype=torch.int32).view(panels, PANEL)
    return packed


def matmul_w8a16(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """x @ (q * scale)^T + bias with int8 weights and unquantised activations; fp32 sums in ascending K.

    x: [M, K] F; weight: from pack_int8 of q [N, K]; scale: [N] float32; bias: [N] F; out: [M, N] F.
    """
    if experts is None:
        _ops.matmul_w8a16.default(x, weight, scale, bias, norm, norm_eps, epilogue, out)
    else:
        _ops.experts_w8a16.default(x, weight, scale, bias, norm, norm_eps, epilogue, *experts, out)
    return out


def matmul_w8a8(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """As matmul_w8a16, but each row of x is quantised to int8 first (scale = max|x| / 127, half to even).

    The int32 sum is exact, so the result is the same on every instruction set. K: at most 131072. A row with an inf
    or NaN gives NaN throughout.
    """
    if experts is None:
        _ops.matmul_w8a8.default(x, weight, scale, bias, norm, norm_eps, epilogue, out)
    else:
        _ops.experts_w8a8.default(x, weight, scale, bias, norm, norm_eps, epilogue, *experts, out)
    return out


class Lora(NamedTuple):
    """The low-rank adapters of one projection, as add_lora takes them. A part is what one matrix of an adapter makes,
    such as q in a projection to q, k and v. R: their largest rank, in whole panels of 16. Of ranks beyond an adapter's
    own a is zero."""

    a: Tensor  # [adapters, parts, R / 16, K, 16] F, 64-byte aligned
    b: Tensor  # [adapters, panels, R, 16] of a's dtype, scaled; zeros beyond a panel's columns
    ranks: Tensor  # [adapters, parts] int32; 0: the adapter does not change the part
    panels: Tensor  # [panels, 3] int32, ascending: the first of up to 16 columns, how many, and their part


def pack_lora_a(a: Tensor, rank: int) -> Tensor:
    """Packs [r, K] F, the first matrix of an adapter, with zeros up to this rank: [rank / 16, K, 16]."""
    padded = torch.nn.functional.pad(a, (0, 0, 0, rank - len(a)))
    return padded.view(-1, PANEL, a.shape[1]).transpose(1, 2).contiguous()


def add_lora(
    x: Tensor,
    slots: Tensor,
    lora: Lora,
    product: Tensor,
    out: Tensor | None = None,
    *,
    epilogue: Epilogue = STORE,
) -> Tensor:
    """product += (x @ a^T) @ b^T by the adapter of each row (LoRA, Hu et al. 2021; of several in a batch, Chen et al.
    2023), summed in fp32 and rounded to product's dtype.

    x: [M, K] F; slots: [M] int32, the adapter of each row, negative: none, whose products stay as they are; product:
    [M, N] F, in place. With an epilogue that multiplies gate and up, product is that of weights which
    interleave_gate_up has interleaved, with a panel for each 16 columns, and out ([M, N / 2 at most], its dtype) gets
    what the epilogue makes of the sum, in all rows.
    """
    _ops.add_lora.default(x, slots, *lora, epilogue, product, out)
    return product if out is None else out


def route_experts(
    logits: Tensor,
    top_k: int,
    *,
    bias: Tensor | None = None,
    expert_scale: Tensor | None = None,
    scoring: Scoring = Scoring.SOFTMAX,
    groups: int = 1,
    top_groups: int = 1,
    group_best: int = 1,
    normalize: bool = False,
    scale: float = 1.0,
    out: Routing | None = None,
) -> Routing:
    """The top_k experts of each token by score, of equal ones the lowest; their weights; the tokens sorted by expert.

    logits: [T, E] float32, E at most 1024. scoring: of the logits, in fp32. bias: [E] float32, added to the scores for
    the choice alone (DeepSeek-V3, Wang et al. 2024). groups: the experts are chosen from the top_groups best of so many
    groups of neighbours, which are compared by the sum of their group_best best experts. normalize: a token's weights
    are divided by their sum + 1e-20. scale: they are then multiplied by it, and by their expert's of expert_scale, [E]
    float32. NaN counts as the lowest score.
    """
    tokens, experts = logits.shape
    out = Routing.empty(tokens, experts, top_k, logits.device) if out is None else out
    _ops.route_experts.default(
        logits, bias, expert_scale, scoring, groups, top_groups, group_best, normalize, scale, *out
    )
    return out


class GgufBlock(NamedTuple):
    """The memory layout of a quantised type of GGUF files; names and layouts are ggml's."""

    weights: int  # of a row, in one block
    bytes: int
    halves: tuple[int, ...]  # offsets of its 16-bit floats, scale first
    words: slice  # bytes that are packed as words of four; the others follow them, two at a time if there are as many
    dtype: torch.dtype = torch.uint8  # packed; int8 where a code names a number of a code book


GGUF_BLOCKS = {
    "Q4_0": GgufBlock(32, 18, (0,), slice(2, 18)),
    "Q4_1": GgufBlock(32, 20, (0, 2), slice(4, 20)),
    "Q5_0": GgufBlock(32, 22, (0,), slice(2, 22)),
    "Q5_1": GgufBlock(32, 24, (0, 2), slice(4, 24)),
    "Q8_0": GgufBlock(32, 34, (0,), slice(2, 34)),
    "Q2_K": GgufBlock(256, 84, (80, 82), slice(80)),
    "Q3_K": GgufBlock(256, 110, (108,), slice(108)),
    "Q4_K": GgufBlock(256, 144, (0, 2), slice(4, 144)),
    "Q5_K": GgufBlock(256, 176, (0, 2), slice(4, 176)),
    "Q6_K": GgufBlock(256, 210, (208,), slice(208)),
    "IQ4_NL": GgufBlock(32, 18, (0,), slice(2, 18), torch.int8),
    "IQ4_XS": GgufBlock(256, 136, (0,), slice(4, 136), torch.int8),
    "MXFP4": GgufBlock(32, 17, (), slice(1, 17), torch.int8),  # its scale is a byte, a power of two
}


def packed_gguf_shape(n: int, k: int, kind: str) -> tuple[int, int, int]:
    """Of N rows of K weights, packed by pack_gguf."""
    block = GGUF_BLOCKS[kind]
    return -(-n // PANEL), k // block.weights, PANEL * block.bytes


def pack_gguf(data: Tensor, kind: str) -> Tensor:
    """Packs the rows of a quantised GGUF tensor for matmul_gguf, bit for bit; kind: one of GGUF_BLOCKS.

    data: [N, K / weights * bytes] uint8, as in the file. Returns [ceil(N/16), K / weights, 16 * bytes], of the type's
    dtype: that and the bytes tell types apart.
    """
    block = GGUF_BLOCKS[kind]
    n, panels = data.shape[0], -(-data.shape[0] // PANEL)
    if n < panels * PANEL:
        data = torch.nn.functional.pad(data, (0, 0, 0, panels * PANEL - n))
    blocks = data.view(panels, PANEL, -1, block.bytes).transpose(1, 2)
    start, stop, _ = block.words.indices(block.bytes)
    words = blocks[..., start:stop].contiguous().view(torch.int32).transpose(2, 3).flatten(2)
    others = torch.cat([blocks[..., :start], blocks[..., stop:]], dim=3)
    others = others.view(*others.shape[:3], -1, min(2, others.shape[3])).transpose(2, 3).flatten(2)
    return torch.cat([words.view(torch.uint8), others], dim=2).view(block.dtype)


def matmul_gguf(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    out: Tensor,
    norm: Tensor | None = None,
    norm_eps: float = 0.0,
    epilogue: Epilogue = STORE,
    experts: Experts | None = None,
) -> Tensor:
    """x @ weight^T + bias with the weights as quantised in a GGUF file, and activations quantised in blocks of 32.

    x: [M, K] F; weight: from pack_gguf; bias: [N] F; out: [M, N] F. Each block of a row of x becomes int8 (scale =
    max|x| / 127, half to even), its dot products are exact, and blocks add up in fp32 in ascending K. A row with an inf
    or NaN gives NaN throughout.
    """
    if experts is None:
        _ops.matmul_gguf.default(x, weight, bias, norm, norm_eps, epilogue, out)
    else:
        _ops.experts_gguf.default(x, weight, bias, norm, norm_eps, epilogue, *experts, out)
    return out


def rope_kv_write(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    positions: Tensor,
    slots: Tensor | None,
    rotary: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    *,
    q_norm: Tensor | None = None,
    k_norm: Tensor | None = None,
    v_norm: Tensor | None = None,
    norm_eps: float = 1e-6,
    layer_norm: bool = False,
    norm_last: bool = False,
    query_scale: Tensor | None = None,
    interleaved: bool = False,
    key_divisor: Tensor | None = None,
    key_offset: Tensor | None = None,
) -> None:
    """Rotates q in place (RoPE, Su et al. 2021), and writes rotated k, and v, into one layer's paged KV cache.

    q: [T, heads * D] F; k, v: [T, kv_heads * D], q's dtype; positions: [T] int64, rows of rotary;
    slots: [T] int64, block * block_size + offset, negative: not written; without k, v and slots nothing is written.
    rotary: [max_position, R] float32, cos in the first R/2 columns and sin in the rest, R <= D: the first R elements of
    a head are rotated, in pairs (i, i + R/2), or (2i, 2i + 1) if interleaved. q_norm, k_norm: [D], or one for each
    head, [heads, D], of q's dtype: RMSNorm of each head, or LayerNorm without a bias if layer_norm, before the
    rotation, or if norm_last after it. v_norm: [D], likewise, of v. query_scale: [max_position], by which the q of a
    position are multiplied last.
    k_cache: [blocks, kv_heads, D, block_size], v_cache: [blocks, kv_heads, block_size, D], F or int8, or on CUDA
    float8_e4m3fn; each block is contiguous, but there may be gaps between blocks. 8-bit: k_scale, v_scale [blocks,
    kv_heads, block_size] float16, one per token and head.
    int4: k_cache [blocks, kv_heads, D / 2, block_size] and v_cache [blocks, kv_heads, block_size, D / 2] uint8, blocks
    at multiples of 16 bytes, codes packed as csrc/pybatch/kv_cache.h says; k_scale, v_scale [blocks, kv_heads,
    ceil(D / INT4_GROUP), block_size] float16, one per token, head and group of INT4_GROUP elements.
    key_divisor, key_offset: [kv_heads, D] float32. The cache gets rotated k / key_divisor - key_offset, and q is
    multiplied by key_divisor: the softmax of the scores is the same, since all of a query's are less by one number. The
    two elements of a pair have the same divisor, a power of two, so that nothing is rounded.
    """
    _ops.rope_kv_write.default(
        q,
        k,
        v,
        positions,
        slots,
        rotary,
        q_norm,
        k_norm,
        v_norm,
        norm_eps,
        layer_norm,
        norm_last,
        query_scale,
        interleaved,
        k_cache,
        v_cache,
        k_scale,
        v_scale,
        key_divisor,
        key_offset,
    )


def copy_blocks(pool: Tensor, pairs: Tensor) -> None:
    """pool[dst] = pool[src] for every (src, dst) of pairs [n, 2] int64; pool: [blocks, block_bytes] uint8.

    Each dst may occur once only, and no block as both src and dst.
    """
    _ops.copy_blocks.default(pool, pairs)


def swap_blocks(src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """dst[j] = src[i] for every (i, j) of pairs [n, 2] int64; two pools of equal block_bytes, as in copy_blocks.

    Each j may occur once only. The pools must not share memory. One may be on the CPU, pinned, and the other on CUDA.
    """
    _ops.swap_blocks.default(src, dst, pairs)


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    window: int = 0,
    soft_cap: float = 0.0,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Causal attention of a ragged batch over the paged KV cache: prefill, chunked prefill and decode alike.

    q, out: [T, heads * D] F; rows query_start[s]:query_start[s+1] are the last tokens of sequence s.
    block_tables: [S, max_blocks] int32; query_start: [S + 1] int32; seq_lens: [S] int32, cached tokens of each
    sequence with this call's included; caches and scales as in rope_kv_write. window: 0 (all), or the number of
    latest tokens that a query sees; soft_cap: 0 (none), or c in c * tanh(logit / c); sinks: [heads] float32, logits in
    the softmax that have no value.
    """
    out = torch.empty_like(q) if out is None else out
    _ops.paged_attention.default(
        q, k_cache, v_cache, k_scale, v_scale, block_tables, query_start, seq_lens, scale, window, soft_cap, sinks, out
    )
    return out


def latent_write(
    q: Tensor,
    kv: Tensor,
    norm: Tensor,
    norm_eps: float,
    positions: Tensor,
    slots: Tensor,
    rotary: Tensor,
    cache: Tensor,
    out: Tensor,
    *,
    interleaved: bool,
) -> None:
    """Writes what a token keeps for latent attention, and the rotated part of its queries. CPU only.

    q: [T, heads * D] F, of which the last R elements of a head are rotated; kv: [T, L + R], q's dtype, of which the
    last R are; norm: [L], q's dtype, RMSNorm's weight of the first L. positions: [T] int64; slots: [T] int64, block *
    block_size + offset, negative: not written; rotary: [max_position, R] as in rope_kv_write; interleaved: pairs are
    (2i, 2i + 1) instead of (i, i + R/2). cache: [blocks, block_size, W] F, W >= L + R a multiple of LATENT_STEP; each
    block is contiguous; it gets L + R elements and zeros. out: [T, heads * W], q's dtype, gets of each head the R
    elements behind the first L, and zeros behind.
    """
    _ops.latent_write.default(q, kv, norm, norm_eps, positions, slots, rotary, interleaved, cache, out)


def latent_attention(
    q: Tensor,
    cache: Tensor,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    out: Tensor,
) -> Tensor:
    """Multi-head latent attention in its absorbed form (DeepSeek-V2, 2024): causal attention of all heads to the same
    keys, which are the values too. CPU only.

    q: [T, heads * W] F; cache: as in latent_write; out: [T, heads * L], q's dtype: the first L elements of the sums.
    block_tables, query_start, seq_lens: as in paged_attention.
    """
    _ops.latent_attention.default(q, cache, block_tables, query_start, seq_lens, scale, out)
    return out


def rotate_keys(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    blocks: Tensor,
    rotary: Tensor,
    key_offset: Tensor | None = None,
) -> None:
    """Turns every key of block blocks[i] of one layer, in place, by the angles of rotary[i]: it then has the position
    that it was written with plus that of the row.

    Caches and scales as in rope_kv_write. blocks: [n] int64, each once; rotary: [n, R] float32, cos in the first R/2
    columns and sin in the rest: the first R elements of a head turn, in pairs (i, i + R/2). Quantised keys are turned
    in float32 and get new scales. key_offset: [kv_heads, D] float32, as in rope_kv_write.
    """
    _ops.rotate_keys.default(k_cache, v_cache, k_scale, v_scale, blocks, rotary, key_offset)


def gather_kv(
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    source: Tensor,
    indices: Tensor,
    destination: Tensor,
) -> None:
    """Token i of KV head h in the block table `destination` becomes token indices[h, i] of the table `source`, bit for
    bit, in one layer.

    Caches and scales as in rope_kv_write. source: [n] int32; indices: [kv_heads, kept] int32, in [0, n * block_size);
    destination: [ceil(kept / block_size)] int32, each block another than those of source or that at the same place. If
    there are any of the latter, which are gathered in place, indices[h, i] >= i, as those of chosen tokens in order
    are.
    """
    _ops.gather_kv.default(k_cache, v_cache, k_scale, v_scale, source, indices, destination)


def attention_mass(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k_scale: Tensor | None,
    v_scale: Tensor | None,
    block_tables: Tensor,
    query_start: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    first: Tensor,
    sources: Tensor,
    rows: Tensor,
    mass: Tensor,
) -> None:
    """The attention that cached tokens have had so far in one layer: the sum over queries, and over the query heads of
    a KV head, of the probabilities of paged_attention (without window, cap or sinks).

    first, sources, rows: [S] int32. Of sequence s the queries first[s]:query_start[s+1] of q count; where there are
    any, mass[rows[s], h, :seq_lens[s]] becomes mass[sources[s], h] (zero where sources[s] is negative, and for the
    tokens of this call) plus their probabilities, added in ascending order of queries: so the sum has the same bits in
    whatever pieces they come. mass: [rows, kv_heads, capacity] float32, capacity a multiple of 16; a row that is
    written is neither written twice nor read. The rest as in paged_attention.
    """
    _ops.attention_mass.default(
        q, k_cache, v_cache, k_scale, v_scale, block_tables, query_start, seq_lens, scale, first, sources, rows, mass
    )


def scale_logits(logits: Tensor, scale: float = 1.0, soft_cap: float = 0.0) -> Tensor:
    """Multiplies logits [R, vocab] float32 by scale in place, and with a soft_cap c (0: none) makes them
    c * tanh(logits / c). Returns logits."""
    _ops.scale_logits.default(logits, scale, soft_cap)
    return logits


def adjust_logits(
    logits: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
    history: Tensor,
    history_start: Tensor,
    output_start: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
    bias_start: Tensor,
) -> None:
    """Adds logit biases, then applies repetition, presence and frequency penalties, in place.

    logits: [R, vocab] float32; repetition, presence, frequency: [R] float32 (1, 0, 0: none); history: [H] int64, each
    row's prompt and then output ids, row r at history_start[r]:history_start[r+1] ([R+1] int64), its output from index
    output_start[r] ([R] int64) on; bias_ids [B] int64, bias_values [B] float32, row r at bias_start[r]:bias_start[r+1].
    """
    _ops.adjust_logits.default(
        logits, repetition, presence, frequency, history, history_start, output_start, bias_ids, bias_values, bias_start
    )


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    masks: Tensor | None = None,
    mask_rows: Tensor | None = None,
) -> Tensor:
    """One token id per row, [R] int64; -1 where its logit is not finite, or the row's mask allows no token.

    logits: [R, vocab] float32; temperature: [R] float32, 0: the largest logit, lowest id first; top_k: [R] int64, 0 or
    less: all; top_p: [R] float32 in (0, 1]; min_p: [R] float32 in [0, 1]; seeds, positions: [R] int64, key and counter
    of the Philox4x32-10 generator (Salmon et al. 2011), so that a draw depends on them and the row alone. It is a race:
    the token with the least exponential variate / probability wins, so that rows with the same seed and position mostly
    draw the same token where their distributions are alike (Daliri, Musco and Suresh 2024).
    masks: [M, ceil(vocab / 32)] int32, of which bit i % 32 of word i / 32 says whether token i may be drawn; any other
    counts as one of logit -inf. mask_rows: [R] int64, which mask is the row's, negative: none.
    """
    out = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    _ops.sample.default(logits, temperature, top_k, top_p, min_p, seeds, positions, masks, mask_rows, out)
    return out


def token_logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log_softmax(logits) at tokens and at the num_top largest.

    logits: [R, vocab] float32; tokens: [R] int64. Returns logprob [R] float32, rank [R] int64 (1: the largest; ties by
    id), top_ids [R, num_top] int64 in descending order, top_logprobs [R, num_top] float32.
    """
    rows, device = logits.shape[0], logits.device
    logprob = torch.empty(rows, dtype=torch.float32, device=device)
    rank = torch.empty(rows, dtype=torch.int64, device=device)
    top_ids = torch.empty(rows, num_top, dtype=torch.int64, device=device)
    top_logprobs = torch.empty(rows, num_top, dtype=torch.float32, device=device)
    _ops.token_logprobs.default(logits, tokens, logprob, rank, top_ids, top_logprobs)
    return logprob, rank, top_ids, top_logprobs


STATE_LANES = 16  # a recurrent state's rows are as long as a multiple of this


def state_width(value_dim: int) -> int:
    """The length of a recurrent state's rows, for gated_delta_rule."""
    return -(-value_dim // STATE_LANES) * STATE_LANES


def causal_conv(
    x: Tensor,
    weight: Tensor,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    destination: Tensor,
    out: Tensor | None = None,
) -> Tensor:
    """silu of a convolution over time, channel by channel: the sum of weight[j] * x[t - taps + 1 + j].

    x, out: [T, channels] F, of a ragged batch: rows query_start[s]:query_start[s+1], at least one, are the next tokens
    of sequence s. weight: [taps, channels] of x's dtype, 2 to 8 taps. state: [slots, taps - 1, channels] of x's dtype,
    contiguous slots that may be apart: the last inputs of a sequence. query_start: [S + 1] int32. source, destination:
    [S] int32: the slot with a sequence's state before these tokens (negative: it begins, with zeros), and that for the
    one after them, which is no other sequence's and nobody's source. A negative destination marks padding, whose rows
    of out are zeros.

    Tokens are taken one after another, so that any pieces of a sequence give the same bits.
    """
    out = torch.empty_like(x) if out is None else out
    _ops.causal_conv.default(x, weight, state, query_start, source, destination, out)
    return out


def gated_delta_rule(
    qkv: Tensor,
    a: Tensor,
    b: Tensor,
    rate: Tensor,
    dt_bias: Tensor,
    state: Tensor,
    query_start: Tensor,
    source: Tensor,
    destination: Tensor,
    out: Tensor,
) -> Tensor:
    """Linear attention by the gated delta rule (Yang, Kautz and Hatamizadeh 2024). Of each value head, token by token:

        S *= exp(-rate * softplus(a + dt_bias));  S += outer(k, v - S^T k) * sigmoid(b);  out = S^T q

    with q and k divided by sqrt(sum of squares + 1e-6), and q by sqrt(K) too. Fp32 sums in one fixed order.

    qkv: [T, 2 * key_heads * K + value_heads * V] F, queries, keys, values; value_heads is a multiple of key_heads, and
    value head h has key head h * key_heads // value_heads. a, b: [T, value_heads] of qkv's dtype. rate, dt_bias:
    [value_heads] float32. state: [slots, value_heads, K, state_width(V)] float32, K up to 256, contiguous slots that
    may be apart. out: [T, value_heads * V] of qkv's dtype. The rest as in causal_conv.
    """
    _ops.gated_delta_rule.default(qkv, a, b, rate, dt_bias, state, query_start, source, destination, out)
    return out


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float, out: Tensor | None = None) -> Tensor:
    """rms_norm of each head of x, times silu(gate). x, gate, out: [T, heads * width] F; weight: [width] of x's dtype.

    out may be x."""
    out = torch.empty_like(x) if out is None else out
    _ops.gated_rms_norm.default(x, gate, weight, eps, out)
    return out
