"""Every registered op: its schema and fake implementation hold (torch.library.opcheck), and a wrong argument is an
error that names it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from ops.low_rank import random_adapters
from torch import Tensor

from pybatch import ops

Arguments = dict[str, Any]


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def integers(*values: int) -> Tensor:
    return torch.tensor(values)


def norm() -> Arguments:
    return {"x": normal(3, 20), "weight": normal(20), "eps": 1e-5, "residual": normal(3, 20), "out": torch.empty(3, 20)}


def add_normed() -> Arguments:
    return {
        "x": normal(3, 20),
        "weight": normal(20),
        "eps": 1e-5,
        "factor": 0.5,
        "scale": 2.0,
        "residual": normal(3, 20),
    }


def gated() -> Arguments:
    return {"x": normal(3, 40), "out": torch.empty(3, 20)}


def plain() -> Arguments:
    return {"x": normal(3, 20), "out": torch.empty(3, 20)}


def sigmoid_mul() -> Arguments:
    return {"x": normal(3, 20), "gate": normal(3, 20), "out": torch.empty(3, 20)}


def gated_rms_norm() -> Arguments:
    return sigmoid_mul() | {"weight": normal(10), "eps": 1e-6}


def states(state: Tensor) -> Arguments:
    """Three tokens of a sequence that goes on and one of one that begins."""
    return {
        "state": state,
        "query_start": torch.tensor([0, 3, 4], dtype=torch.int32),
        "source": torch.tensor([1, -1], dtype=torch.int32),
        "destination": torch.tensor([0, 2], dtype=torch.int32),
    }


def causal_conv() -> Arguments:
    return {"x": normal(4, 20), "weight": normal(4, 20), **states(normal(3, 3, 20)), "out": torch.empty(4, 20)}


def gated_delta_rule() -> Arguments:
    return {
        "qkv": normal(4, 2 * 8 + 2 * 12),
        "a": normal(4, 2),
        "b": normal(4, 2),
        "rate": torch.ones(2),
        "dt_bias": normal(2),
        **states(normal(3, 2, 8, 16)),
        "out": torch.empty(4, 2 * 12),
    }


def embedding(table: Tensor, scale: Tensor | None = None) -> Arguments:
    table = {"table": table, "scale": scale, "vocab": 32, "multiplier": 1.5}
    return {"ids": integers(4, 0, 19), **table, "out": torch.empty(3, 20)}


def int8_weights() -> tuple[Tensor, Tensor]:
    q, scale = ops.quantize_int8(normal(32, 20))
    return ops.pack_int8(q), scale


def int8_embedding() -> Arguments:
    return embedding(*int8_weights())


def linear(k: int) -> Arguments:
    """What all matmuls take."""
    fused = {"norm": normal(k), "norm_eps": 1e-5, "epilogue": 1}
    return {"x": normal(3, k), "bias": normal(32), "out": torch.empty(3, 32)} | fused


def matmul_dense() -> Arguments:
    return linear(20) | {"weight": ops.pack_dense(normal(32, 20))}


def matmul_int8() -> Arguments:
    weight, scale = int8_weights()
    return linear(20) | {"weight": weight, "scale": scale}


def gguf_weights() -> Tensor:
    return ops.pack_gguf(torch.arange(32 * 2 * 18).view(32, 2 * 18).to(torch.uint8) % 60, "Q4_0")


def gguf_embedding() -> Arguments:
    return embedding(gguf_weights()) | {"out": torch.empty(3, 64)}


def matmul_gguf() -> Arguments:
    return linear(64) | {"weight": gguf_weights()}


def experts(matmul: Callable[[], Arguments], gathers: bool) -> Arguments:
    """Three experts of the same weights: rows of three tokens, each for two experts, are made or summed."""
    given = matmul()
    stacks = {key: torch.stack([given[key]] * 3) for key in ("weight", "scale", "bias") if key in given}
    if not gathers:
        given["x"] = normal(6, given["x"].shape[1])
    return given | stacks | {
        "starts": integers(0, 4, 4, 6).int(),
        "tokens": integers(0, 1, 1, 2, 0, 2).int() if gathers else None,
        "places": None if gathers else integers(0, 4, 1, 2, 3, 5).int().view(3, 2),
        "weights": None if gathers else normal(3, 2),
        "out": torch.empty(6 if gathers else 3, 32),
    }  # fmt: skip


def add_lora(gated: bool) -> Arguments:
    lora = random_adapters([20, 20], 8, [4, 2], gated=gated).packed
    out = {"epilogue": 2, "product": normal(3, 64), "out": torch.empty(3, 20)} if gated else {"epilogue": 0}
    slots = torch.tensor([0, -1, 1], dtype=torch.int32)
    return {"x": normal(3, 8), "slots": slots, **lora._asdict(), "product": normal(3, 40), "out": None, **out}


def route_experts() -> Arguments:
    return {
        "logits": normal(3, 8), "bias": normal(8), "expert_scale": normal(8), "scoring": 1, "groups": 4,
        "top_groups": 2, "group_best": 2, "normalize": True, "scale": 2.5, **ops.Routing.empty(3, 8, 2)._asdict(),
    }  # fmt: skip


def kv_cache(int8: bool) -> Arguments:
    k, v = normal(5, 2, 16, 8), normal(5, 2, 8, 16)
    scales = [torch.full((5, 2, 8), 0.02).half() if int8 else None for _ in "kv"]
    if int8:
        k, v = (k * 40).to(torch.int8), (v * 40).to(torch.int8)
    return {"k_cache": k, "v_cache": v, "k_scale": scales[0], "v_scale": scales[1]}


def rope_kv_write(int8: bool) -> Arguments:
    return {
        "q": normal(3, 4 * 16),
        "k": normal(3, 2 * 16),
        "v": normal(3, 2 * 16),
        "positions": integers(0, 1, 9),
        "slots": integers(0, 1, -1),
        "rotary": normal(10, 16),
        "q_norm": normal(16),
        "k_norm": normal(16),
        "v_norm": None if int8 else normal(16),
        "norm_eps": 1e-6,
        "layer_norm": int8,
        "norm_last": int8,
        "query_scale": normal(10) if int8 else None,
        "interleaved": False,
        **kv_cache(int8),
        "key_divisor": torch.full((2, 16), 2.0) if int8 else None,
        "key_offset": normal(2, 16) if int8 else None,
    }


def paged_attention(int8: bool) -> Arguments:
    return {
        "q": normal(4, 4 * 16),
        **kv_cache(int8),
        "block_tables": torch.tensor([[0, 1], [2, 3]], dtype=torch.int32),
        "query_start": torch.tensor([0, 3, 4], dtype=torch.int32),
        "seq_lens": torch.tensor([3, 10], dtype=torch.int32),
        "scale": 0.25,
        "window": 4,
        "soft_cap": 10.0,
        "sinks": normal(4),
        "counters": torch.zeros(9, dtype=torch.int32),
        "out": torch.empty(4, 4 * 16),
    }


def latent_write() -> Arguments:
    return {
        "q": normal(3, 2 * 20),
        "kv": normal(3, 28),
        "norm": normal(20),
        "norm_eps": 1e-6,
        "positions": integers(0, 1, 9),
        "slots": integers(0, 1, -1),
        "rotary": normal(10, 8),
        "interleaved": True,
        "cache": normal(5, 8, 32),
        "out": normal(3, 2 * 32),
    }


def latent_attention() -> Arguments:
    given = paged_attention(False)
    batch = {name: given[name] for name in ("block_tables", "query_start", "seq_lens", "scale")}
    return {"q": normal(4, 3 * 32), "cache": normal(5, 8, 32), **batch, "out": torch.empty(4, 3 * 20)}


def rotate_keys(int8: bool) -> Arguments:
    offset = normal(2, 16) if int8 else None
    return {**kv_cache(int8), "blocks": integers(3, 0), "rotary": normal(2, 16), "key_offset": offset}


def gather_kv(int8: bool) -> Arguments:
    source, destination = torch.tensor([[0, 2], [3, 1]], dtype=torch.int32)
    indices = torch.arange(32, dtype=torch.int32).view(2, 16) // 2
    return {**kv_cache(int8), "source": source, "indices": indices, "destination": destination}


def attention_mass(int8: bool) -> Arguments:
    given = paged_attention(int8)
    return {
        **{name: given[name] for name in parameters("attention_mass") if name in given},
        "first": torch.tensor([0, 3], dtype=torch.int32),
        "sources": torch.tensor([2, -1], dtype=torch.int32),
        "rows": torch.tensor([0, 1], dtype=torch.int32),
        "mass": torch.ones(3, 2, 16),
    }


def pool(blocks: int) -> Tensor:
    return torch.arange(blocks * 32, dtype=torch.uint8).view(blocks, 32)


def adjust_logits() -> Arguments:
    return {
        "logits": normal(2, 20),
        "repetition": torch.full((2,), 1.2),
        "presence": torch.full((2,), 0.5),
        "frequency": torch.full((2,), 0.5),
        "history": integers(1, 2, 2, 3, 0),
        "history_start": integers(0, 3, 5),
        "output_start": integers(1, 5),
        "bias_ids": integers(7, 8),
        "bias_values": torch.tensor([1.0, 2.0]),
        "bias_start": integers(0, 1, 2),
    }


def sample() -> Arguments:
    return {
        "logits": normal(2, 20),
        "temperature": torch.full((2,), 0.7),
        "top_k": integers(5, 0),
        "top_p": torch.full((2,), 0.9),
        "min_p": torch.full((2,), 0.1),
        "seeds": integers(1, 2),
        "positions": integers(3, 4),
        "masks": torch.tensor([[-1], [0x5555]], dtype=torch.int32),
        "mask_rows": integers(1, -1),
        "out": torch.empty(2, dtype=torch.int64),
    }


def token_logprobs() -> Arguments:
    return {
        "logits": normal(2, 20),
        "tokens": integers(3, 4),
        "logprob": torch.empty(2),
        "rank": torch.empty(2, dtype=torch.int64),
        "top_ids": torch.empty(2, 5, dtype=torch.int64),
        "top_logprobs": torch.empty(2, 5),
    }


# Valid arguments of every op; between them its examples give every optional argument at least once.
EXAMPLES: dict[str, list[Callable[[], Arguments]]] = {
    "rms_norm": [norm, lambda: norm() | {"residual": None}],
    "layer_norm": [lambda: norm() | {"bias": normal(20)}],
    "gelu": [plain],
    "gelu_tanh": [plain],
    "relu2": [plain],
    "add_normed": [add_normed, lambda: add_normed() | {"weight": None}],
    "silu_mul": [gated],
    "gelu_tanh_mul": [gated],
    "xielu": [lambda: plain() | {"alpha_p": 0.8, "alpha_n": 1.1, "beta": 0.5, "eps": -1e-6}],
    "clamped_swiglu": [lambda: gated() | {"alpha": 1.702, "limit": 7.0}],
    "sigmoid_mul": [sigmoid_mul],
    "gelu_tanh_gate": [sigmoid_mul],
    "gated_rms_norm": [gated_rms_norm],
    "causal_conv": [causal_conv],
    "gated_delta_rule": [gated_delta_rule],
    "embedding": [
        lambda: embedding(normal(32, 20)),
        lambda: embedding(ops.pack_dense(normal(32, 20))),
        int8_embedding,
        gguf_embedding,
    ],
    "matmul_dense": [matmul_dense, lambda: matmul_dense() | {"bias": None, "norm": None}],
    "matmul_w8a16": [matmul_int8, lambda: matmul_int8() | {"bias": None, "norm": None}],
    "matmul_w8a8": [matmul_int8, lambda: matmul_int8() | {"bias": None, "norm": None}],
    "matmul_gguf": [matmul_gguf, lambda: matmul_gguf() | {"bias": None, "norm": None}],
    **{
        f"experts_{name}": [lambda matmul=matmul: experts(matmul, True), lambda matmul=matmul: experts(matmul, False)]
        for name, matmul in (
            ("dense", matmul_dense),
            ("w8a16", matmul_int8),
            ("w8a8", matmul_int8),
            ("gguf", matmul_gguf),
        )
    },
    "add_lora": [lambda: add_lora(False), lambda: add_lora(True)],
    "route_experts": [route_experts],
    "rope_kv_write": [
        lambda: rope_kv_write(False),
        lambda: rope_kv_write(True),
        lambda: rope_kv_write(False) | {"k": None, "v": None, "slots": None},
    ],
    "copy_blocks": [lambda: {"pool": pool(5), "pairs": torch.tensor([[0, 1], [0, 2]])}],
    "swap_blocks": [lambda: {"src": pool(5), "dst": pool(3), "pairs": torch.tensor([[4, 0], [1, 2]])}],
    "paged_attention": [lambda: paged_attention(False), lambda: paged_attention(True)],
    "latent_write": [latent_write],
    "latent_attention": [latent_attention],
    "rotate_keys": [lambda: rotate_keys(False), lambda: rotate_keys(True)],
    "gather_kv": [lambda: gather_kv(False), lambda: gather_kv(True)],
    "attention_mass": [lambda: attention_mass(False), lambda: attention_mass(True)],
    "scale_logits": [lambda: {"logits": normal(2, 20), "scale": 0.5, "soft_cap": 3.0}],
    "adjust_logits": [adjust_logits],
    "sample": [sample, lambda: sample() | {"masks": None, "mask_rows": None}],
    "token_logprobs": [token_logprobs],
}

CASES = [(name, example) for name, examples in EXAMPLES.items() for example in examples]
cases = pytest.mark.parametrize(("name", "example"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])


def overload(name: str) -> torch._ops.OpOverload:
    return getattr(torch.ops.pybatch, name).default


def parameters(name: str) -> list[str]:
    return [argument.name for argument in overload(name)._schema.arguments]


def call(name: str, arguments: Arguments) -> None:
    overload(name)(*(arguments[parameter] for parameter in parameters(name)))


def tensors(arguments: Arguments) -> Iterator[tuple[str, Tensor]]:
    return ((key, value) for key, value in arguments.items() if isinstance(value, Tensor))


def test_every_registered_op_has_an_example() -> None:
    registered = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("pybatch::")}
    assert registered == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_give_every_argument(name: str) -> None:
    given = {key for example in EXAMPLES[name] for key, value in example().items() if value is not None}
    assert given == set(parameters(name))


@cases
def test_opcheck(name: str, example: Callable[[], Arguments]) -> None:
    arguments = example()
    torch.library.opcheck(overload(name), tuple(arguments[parameter] for parameter in parameters(name)))


@cases
def test_a_wrong_dtype_is_an_error_that_names_the_argument(name: str, example: Callable[[], Arguments]) -> None:
    for argument, tensor in tensors(example()):
        with pytest.raises(RuntimeError, match=rf"^{argument}\b"):
            call(name, example() | {argument: tensor.to(torch.float64)})


@cases
def test_a_wrong_rank_is_an_error_that_names_the_argument(name: str, example: Callable[[], Arguments]) -> None:
    for argument, tensor in tensors(example()):
        with pytest.raises(RuntimeError, match=rf"^{argument}\b"):
            call(name, example() | {argument: tensor.view(1, 1, *tensor.shape)})


@cases
def test_one_tensor_on_another_device_is_an_error_that_names_it(name: str, example: Callable[[], Arguments]) -> None:
    """Torch gives such a call to the fake implementation, which computes nothing."""
    given = list(tensors(example()))
    for argument, tensor in given if len(given) > 1 else ():  # one alone is on no other device
        with pytest.raises(RuntimeError, match=rf"^{argument}: expected a tensor on cpu, got one on meta"):
            call(name, example() | {argument: tensor.to("meta")})


@cases
def test_meta_tensors_compute_nothing(name: str, example: Callable[[], Arguments]) -> None:
    call(name, example() | {argument: tensor.to("meta") for argument, tensor in tensors(example())})


def test_a_compiled_call_has_the_bits_of_the_op() -> None:
    arguments = norm()
    compiled = torch.compile(ops.rms_norm, fullgraph=True, backend="aot_eager")
    x, weight = arguments["x"], arguments["weight"]
    assert torch.equal(compiled(x, weight, 1e-5), ops.rms_norm(x, weight, 1e-5))


@cases
def test_a_storage_that_has_been_cut_is_an_error_that_names_the_argument(
    name: str, example: Callable[[], Arguments]
) -> None:
    for argument, tensor in tensors(example()):
        cut = tensor.clone()
        cut.untyped_storage().resize_(cut.untyped_storage().nbytes() - 1)
        with pytest.raises(RuntimeError, match=rf"^{argument}: expected a storage of at least"):
            call(name, example() | {argument: cut})


# More columns of these are no mistake.
FREE = {
    ("add_lora", "product"),
    ("adjust_logits", "logits"),
    ("scale_logits", "logits"),
    ("attention_mass", "block_tables"),
    ("copy_blocks", "pool"),
    ("gather_kv", "source"),
    ("latent_attention", "block_tables"),
    ("paged_attention", "block_tables"),
    ("paged_attention", "counters"),
    ("sample", "logits"),
    ("token_logprobs", "logits"),
}


@cases
def test_a_wrong_extent_is_an_error_that_names_an_argument(name: str, example: Callable[[], Arguments]) -> None:
    for argument, tensor in tensors(example()):
        if (name, argument) in FREE:
            continue
        longer = torch.cat([tensor, tensor[..., :1]], dim=-1)
        with pytest.raises(RuntimeError, match=rf"^({'|'.join(parameters(name))})\b.*: expected"):
            call(name, example() | {argument: longer})


@cases
def test_gaps_are_an_error_that_names_the_argument(name: str, example: Callable[[], Arguments]) -> None:
    for argument, tensor in tensors(example()):
        gaps = torch.stack([tensor, tensor], dim=-1)[..., 0]
        with pytest.raises(RuntimeError, match=rf"^{argument}: expected .*(contiguous|overlap)"):
            call(name, example() | {argument: gaps})


@pytest.mark.parametrize(
    ("name", "argument", "value", "message"),
    [
        ("silu_mul", "x", normal(3, 41), "x: expected an even number of columns"),
        ("embedding", "ids", integers(0, 32, 1), r"ids: expected ids in \[0, 32\), got 32 at 1"),
        ("embedding", "ids", integers(0, 1, -1), r"ids: expected ids in \[0, 32\), got -1 at 2"),
        ("embedding", "vocab", 0, "vocab: expected a positive number"),
        ("rope_kv_write", "positions", integers(0, 10, 1), r"positions: expected ids in \[0, 10\), got 10 at 1"),
        ("rope_kv_write", "slots", integers(0, 40, 1), "slots: expected below 40, got 40 at 1"),
        ("rope_kv_write", "slots", None, "k: expected k, v and slots, or none"),
        ("rope_kv_write", "k_cache", normal(5, 2, 12, 8), "k_cache|v_cache"),
        ("rope_kv_write", "k_scale", torch.ones(5, 2, 8), "k_scale, v_scale: expected none"),
        ("swap_blocks", "pairs", torch.tensor([[5, 0]]), r"pairs: expected source blocks in \[0, 5\), got 5 at 0"),
        ("swap_blocks", "pairs", torch.tensor([[0, 3]]), r"pairs: expected destination blocks in \[0, 3\), got 3"),
        ("swap_blocks", "pairs", torch.tensor([[0, 2], [1, 2]]), "pairs: expected each destination block once, got 2"),
        ("gated_rms_norm", "weight", normal(7), "x: expected a width that is a multiple of weight's 7, got 20"),
        ("causal_conv", "weight", normal(9, 20), r"weight: expected 2 to 8 rows \(taps\), got 9"),
        ("causal_conv", "destination", torch.tensor([0, 0], dtype=torch.int32), "destination: expected each slot once"),
        ("causal_conv", "destination", torch.tensor([0, 3], dtype=torch.int32), "destination: expected below 3, got 3"),
        ("causal_conv", "source", torch.tensor([3, 1], dtype=torch.int32), "source: expected below 3, got 3 at 0"),
        ("gated_delta_rule", "source", torch.tensor([1, 2], dtype=torch.int32), "source: expected slots that are not"),
        (
            "gated_delta_rule",
            "query_start",
            torch.tensor([0, 4, 4], dtype=torch.int32),
            "query_start: expected at least one token of sequence 1",
        ),
        ("gated_delta_rule", "state", normal(3, 2, 257, 16), "state: expected a key dimension of 1 to 256, got 257"),
        ("gated_delta_rule", "qkv", normal(4, 2 * 9 + 2 * 12), "qkv: expected queries and keys of 8 elements"),
        ("rms_norm", "eps", 1e39, "eps: expected a finite number that float32 can hold, got 1e\\+39"),
        ("layer_norm", "eps", float("nan"), "eps: expected a finite number that float32 can hold, got nan"),
        ("matmul_dense", "norm_eps", float("inf"), "norm_eps: expected a finite number"),
        ("rope_kv_write", "norm_eps", 1e-60, "norm_eps: expected a finite number that float32 can hold, got 1e-60"),
        (
            "rope_kv_write",
            "q",
            torch.empty(3, 0),
            "q: expected a width that is a multiple of the cache's head dimension",
        ),
        ("paged_attention", "q", torch.empty(4, 0), r"q: expected a width that is a multiple of kv_heads \* head_dim"),
        ("paged_attention", "scale", -1e39, "scale: expected a finite number"),
        (
            "paged_attention",
            "query_start",
            torch.tensor([0, -(2**31), 4], dtype=torch.int32),
            "query_start: expected ascending values",
        ),
        ("paged_attention", "window", -1, "window: expected 0"),
        ("paged_attention", "counters", torch.zeros(8, dtype=torch.int32), "counters: expected at least 9"),
        ("paged_attention", "counters", torch.zeros(9), "counters: expected int32, got float32"),
        ("paged_attention", "soft_cap", -1.0, "soft_cap: expected 0"),
        ("paged_attention", "seq_lens", torch.tensor([3, 17], dtype=torch.int32), "block_tables: expected at least 3"),
        ("paged_attention", "seq_lens", torch.tensor([2, 10], dtype=torch.int32), "seq_lens: expected at least the 3"),
        ("paged_attention", "query_start", torch.tensor([0, 3, 5], dtype=torch.int32), "query_start: expected to"),
        ("rotate_keys", "blocks", integers(0, 5), r"blocks: expected blocks in \[0, 5\), got 5 at 1"),
        ("rotate_keys", "blocks", integers(2, 2), "blocks: expected each block once, got 2 twice"),
        ("rope_kv_write", "q_norm", normal(3, 16), r"q_norm: expected shape \[4, 16\], got \[3, 16\]"),
        ("rope_kv_write", "query_scale", normal(9), r"query_scale: expected shape \[10\], got \[9\]"),
        ("rope_kv_write", "key_offset", normal(2, 15), r"key_offset: expected shape \[2, 16\], got \[2, 15\]"),
        ("rope_kv_write", "key_divisor", normal(2, 16).half(), "key_divisor: expected float32, got float16"),
        ("rotate_keys", "key_offset", normal(1, 16), r"key_offset: expected shape \[2, 16\], got \[1, 16\]"),
        ("rotate_keys", "rotary", normal(2, 18), "rotary: expected an even width of at most the head dimension 16"),
        ("attention_mass", "scale", 1e39, "scale: expected a finite number"),
        ("adjust_logits", "history", integers(1, 2, 20, 3, 0), r"history: expected ids in \[0, 20\), got 20 at 2"),
        ("adjust_logits", "history_start", integers(0, 6, 5), "history_start: expected ascending"),
        ("adjust_logits", "output_start", integers(4, 5), "output_start: expected within the history of row 0"),
        ("adjust_logits", "bias_ids", integers(7, -1), r"bias_ids: expected ids in \[0, 20\), got -1 at 1"),
        ("sample", "temperature", torch.tensor([0.5, -1.0]), "temperature: expected 0 or more, got -1 at 1"),
        ("sample", "temperature", torch.tensor([torch.nan, 1.0]), "temperature: expected 0 or more, got nan at 0"),
        ("sample", "top_p", torch.tensor([0.0, 1.0]), r"top_p: expected in \(0, 1\], got 0 at 0"),
        ("sample", "min_p", torch.tensor([0.0, 1.5]), r"min_p: expected in \[0, 1\], got 1.5 at 1"),
        ("sample", "masks", None, "mask_rows: expected with masks, and only with them"),
        ("sample", "mask_rows", integers(0, 2), r"mask_rows: expected below 2 \(the masks\), got 2 at 1"),
        ("sample", "masks", torch.zeros(2, 1), "masks: expected int32, got float32"),
        ("sample", "logits", torch.empty(2, 0), "logits: expected at least one column"),
        ("token_logprobs", "tokens", integers(3, 20), r"tokens: expected ids in \[0, 20\), got 20 at 1"),
    ],
)
def test_a_wrong_value_is_an_error_that_says_what_was_expected(
    name: str, argument: str, value: Any, message: str
) -> None:
    with pytest.raises(RuntimeError, match=f"^({message})"):
        call(name, EXAMPLES[name][0]() | {argument: value})


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("embedding", "vocab", 2**63),
        ("matmul_w8a8", "epilogue", -(2**63) - 1),
        ("paged_attention", "window", 2**64),
        ("rms_norm", "eps", 10**400),
        ("token_logprobs", "logits", 1),
    ],
)
def test_a_number_beyond_its_type_is_an_error(name: str, argument: str, value: Any) -> None:
    with pytest.raises((RuntimeError, OverflowError)):
        call(name, EXAMPLES[name][0]() | {argument: value})


@pytest.mark.parametrize("name", ["rope_kv_write", "paged_attention", "rotate_keys", "gather_kv", "attention_mass"])
def test_a_cache_without_heads_is_an_error(name: str) -> None:
    """It was a division by zero."""
    without = {key: torch.empty(5, 0, *EXAMPLES[name][0]()[key].shape[2:]) for key in ("k_cache", "v_cache")}
    with pytest.raises(RuntimeError, match=r"^k_cache: expected at least one head"):
        call(name, EXAMPLES[name][0]() | without)
    many = torch.empty(0).as_strided((0, 2**61, 8, 8), (1, 64, 8, 1))  # times 8, which overflows, 0
    with pytest.raises(RuntimeError, match=r"^k_cache: expected at least one head and at most 2147483647, got shape"):
        call(name, EXAMPLES[name][0]() | {"k_cache": many, "v_cache": many})


@pytest.mark.parametrize("op", [ops.silu_mul, ops.gelu_tanh_mul, ops.clamped_swiglu])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4)])
def test_an_output_is_made_of_matrices_alone(op: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match=rf"^x: expected shape \[\*, \*\], got {re.escape(str([*shape]))}"):
        op(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(), (6,), (2, 3, 4)])
def test_tokens_are_made_of_matrices_of_logits_alone(shape: tuple[int, ...]) -> None:
    logits, ids = torch.zeros(shape), torch.zeros(1, dtype=torch.int64)
    calls: list[Callable[[], object]] = [
        lambda: ops.sample(logits, torch.ones(1), ids, torch.ones(1), torch.zeros(1), ids, ids),
        lambda: ops.token_logprobs(logits, ids, 2),
        lambda: ops.route_experts(logits, 2),
    ]
    for call_with in calls:
        with pytest.raises(RuntimeError, match=r"^logits: expected shape \[\*, \*\], got"):
            call_with()


def test_any_number_of_rows_without_columns_takes_no_time() -> None:
    rows = 2**40
    x, none = torch.empty(rows, 0), torch.empty(0)
    ops.rms_norm(x, none, 1e-5, residual=x)
    ops.layer_norm(x, none, none, 1e-5)
    ops.silu_mul(x)
    empty_weights = {"dense": torch.empty(0, 0, 16), "int8": torch.empty(0, 1, 16, 4, dtype=torch.int8)}
    ops.matmul_dense(x, empty_weights["dense"], out=torch.empty(rows, 0))
    for matmul in (ops.matmul_w8a16, ops.matmul_w8a8):
        matmul(x, empty_weights["int8"], none, out=torch.empty(rows, 0))
    ops.matmul_gguf(x, torch.empty(0, 0, 16 * 18, dtype=torch.uint8), out=torch.empty(rows, 0))
    ops.copy_blocks(torch.empty(rows, 0, dtype=torch.uint8), torch.tensor([[0, rows - 1]]))


@pytest.mark.parametrize("name", ["matmul_dense", "matmul_w8a16", "matmul_w8a8", "matmul_gguf"])
def test_packed_weights_must_be_aligned(name: str) -> None:
    arguments = EXAMPLES[name][0]()
    weight = arguments["weight"]
    shifted = torch.cat([weight.flatten()[:1], weight.flatten()])[1:].view(weight.shape)
    with pytest.raises(RuntimeError, match="weight: expected data aligned to 64 bytes"):
        call(name, arguments | {"weight": shifted})


REFUSED = """
import resource, torch
from pybatch import ops

torch.set_num_threads(2)
weight, x, out = ops.pack_dense(torch.ones(16, 1 << 16).half()), torch.ones(512, 1 << 16).half(), torch.ones(512, 16)
ops.matmul_dense(x[:8], weight, out=out[:8])
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
for _ in range(2):
    try:
        ops.matmul_dense(x, weight, out=out)
    except RuntimeError as error:
        print(error)
print(ops.matmul_dense(x[:8], weight, out=out[:8])[0, 0].item())
vocabulary = 8_000_000  # each of the pool's threads wants a buffer of its own
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
logits, n = torch.zeros(2, vocabulary), torch.zeros(2, dtype=torch.int64)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), resource.RLIM_INFINITY))
try:
    ops.sample(logits, torch.ones(2), n, torch.full((2,), 0.9), torch.zeros(2), n, n)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
def test_memory_that_a_kernel_is_refused_is_an_error() -> None:
    """It ended the process."""
    result = subprocess.run([sys.executable, "-c", REFUSED], capture_output=True, text=True, timeout=60)
    refused = r"out of memory: a kernel was refused \d{9,} bytes to work in\n"
    assert re.fullmatch(f"{refused}{refused}65536.0\n{refused}", result.stdout), result.stdout + result.stderr
