"""Quantised checkpoints of random models, written as the formats' specifications have them: round to nearest, and the
weights that come of it, for the same model in transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

NF4 = [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
NF4 += [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


class Quantized(NamedTuple):
    tensors: dict[str, Tensor]  # by what follows the module's name
    weight: Tensor  # dequantised, float32
    about: dict[str, Any] | None = None  # for the header, of torchao


def write(
    directory: Path,
    model: PreTrainedModel,
    quantize: Callable[[Tensor], Quantized],
    config: dict[str, Any],
    keep: tuple[str, ...] = (),
) -> Path:
    """Saves the model with the matrices of its layers quantised, but for modules that end in one of `keep`, and puts
    the dequantised weights into it."""
    model.half().save_pretrained(directory)
    model.float()
    tensors: dict[str, Tensor] = {}
    texts = {"format": "pt"}
    for name, parameter in model.named_parameters():
        module = name.rpartition(".")[0]
        if parameter.ndim == 2 and ".layers." in name and not module.endswith(keep or ("\0",)):
            found = quantize(parameter.detach())
            tensors |= {f"{module}.{suffix}": tensor.contiguous() for suffix, tensor in found.tensors.items()}
            texts |= {} if found.about is None else {name: json.dumps(found.about)}
            with torch.no_grad():
                parameter.copy_(found.weight)
        else:
            tensors[name] = parameter.detach().half()
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    for file in directory.glob("*.safetensors*"):
        file.unlink()
    save_file(tensors, directory / "model.safetensors", texts)
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "quantization_config": config}))
    return directory


def rounded(weight: Tensor, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K] from 0 up, scales [N, G] float16 and zero points [N, G] of groups of columns side by side."""
    n = len(weight)
    parts = weight.view(n, -1, group)
    highest = (1 << bits) - 1
    if symmetric:
        scale = (parts.abs().amax(2) / (highest / 2)).half()
        zero = torch.full_like(scale, 1 << bits - 1).int()
    else:
        low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
        scale = ((high - low) / highest).half()
        zero = (-low / scale.float()).round().int().clamp(0, highest)
    codes = (parts / scale[..., None].float()).round().int() + zero[..., None]
    return codes.clamp(0, highest).view(n, -1), scale, zero


def dequantized(codes: Tensor, scale: Tensor, zero: Tensor, group_of: Tensor) -> Tensor:
    return (codes - zero[:, group_of]).float() * scale[:, group_of].float()


def in_words(codes: Tensor, bits: int) -> Tensor:
    """[n, K] -> [n, K * bits / 32] int32, from the lowest bits up, across words where they do not divide them."""
    n, k = codes.shape
    each = (codes[..., None] >> torch.arange(bits)) & 1
    words = torch.nn.functional.pad(each.reshape(n, -1), (0, -k * bits % 32)).view(n, -1, 32).long()
    return (words << torch.arange(32)).sum(2).to(torch.int32)


def gptq(
    weight: Tensor, bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False, version: int = 1
) -> Quantized:
    k = weight.shape[1]
    group = k if group < 0 else group
    order = torch.randperm(k, generator=torch.Generator().manual_seed(0)) if act_order else torch.arange(k)
    codes, scale, zero = rounded(weight[:, order], bits, group, symmetric)
    group_of = torch.empty(k, dtype=torch.int64)
    group_of[order] = torch.arange(k) // group
    codes = codes[:, order.argsort()]
    qzeros = in_words(zero.t(), bits)
    if version == 1 and bits == 3:
        qzeros = in_words((zero.t() - 1) & 7, bits)
    elif version == 1:
        qzeros -= sum(1 << at for at in range(0, 32, bits))
    tensors = {
        "qweight": in_words(codes, bits).t(),
        "qzeros": qzeros,
        "scales": scale.t(),
        "g_idx": group_of.int(),
    }
    return Quantized(tensors, dequantized(codes, scale, zero, group_of))


def awq(weight: Tensor, group: int = 32) -> Quantized:
    k = weight.shape[1]
    group = k if group < 0 else group
    codes, scale, zero = rounded(weight, 4, group, False)

    def in_order(values: Tensor) -> Tensor:
        """[n, rows] -> [n, rows / 8]: the lowest bits are those of row 0, the next of row 2 and so on."""
        return in_words(values.view(len(values), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]].flatten(1), 4)

    tensors = {"qweight": in_order(codes.t()), "qzeros": in_order(zero.t()), "scales": scale.t()}
    return Quantized(tensors, dequantized(codes, scale, zero, torch.arange(k) // group))


def pack_quantized(
    weight: Tensor, bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False
) -> Quantized:
    """compressed-tensors' W4A16 and W8A16."""
    made = gptq(weight, bits, group, symmetric, act_order, 2)
    n, k = weight.shape
    codes, scale, zero = rounded(weight, bits, k if group < 0 else group, symmetric)
    tensors = {"weight_packed": in_words(codes, bits), "weight_scale": scale, "weight_shape": torch.tensor([n, k])}
    if act_order:
        tensors |= {"weight_packed": made.tensors["qweight"].t(), "weight_g_idx": made.tensors["g_idx"]}
        tensors["weight_scale"] = made.tensors["scales"].t()
    if not symmetric:
        tensors["weight_zero_point"] = in_words(zero.t(), bits).t()
    return Quantized(tensors, made.weight)


def w8a8(weight: Tensor, channels: bool = True) -> Quantized:
    scale = weight.abs().amax(1, keepdim=True) / 127
    scale = scale if channels else scale.amax().view(1)
    codes = (weight / scale).round().to(torch.int8)
    return Quantized({"weight": codes, "weight_scale": scale}, codes.float() * scale)


def float8(weight: Tensor, block: tuple[int, int] | None = None, name: str = "weight_scale_inv") -> Quantized:
    """block: of weights that share a scale; None: all do."""
    n, k = weight.shape
    height, width = block or (n, k)
    rows, columns = torch.arange(n) // height, torch.arange(k) // width
    count = int(rows[-1]) + 1, int(columns[-1]) + 1
    scale = torch.stack([
        torch.stack([weight[rows == row][:, columns == column].abs().max() / 448 for column in range(count[1])])
        for row in range(count[0])
    ])  # fmt: skip
    spread = scale[rows][:, columns]
    codes = (weight / spread).to(torch.float8_e4m3fn)
    return Quantized({"weight": codes, name: scale if block else scale.view(1)}, codes.float() * spread)


def nvfp4(weight: Tensor, names: tuple[str, str, str], multiplied: bool) -> Quantized:
    """names: of codes, scales and the tensor's scale, by which scales are multiplied (ModelOpt) or divided."""
    n, k = weight.shape
    parts = weight.view(n, -1, 16)
    whole = parts.abs().max() / (6 * 448)
    scale = (parts.abs().amax(2) / 6 / whole).to(torch.float8_e4m3fn)
    spread = scale.float()[..., None] * whole
    codes = nearest(parts / spread, E2M1).view(n, k)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    stored = whole.view(1) if multiplied else 1 / whole.view(1)
    exact = torch.tensor(E2M1)[codes].view(n, -1, 16) * scale.float()[..., None]
    weight = (exact * stored if multiplied else exact / stored).view(n, k)
    return Quantized(dict(zip(names, (packed, scale, stored), strict=True)), weight)


def mxfp4(weight: Tensor) -> Quantized:
    n, k = weight.shape
    parts = weight.view(n, -1, 32)
    exponent = (parts.abs().amax(2) / 6).log2().ceil()
    scale = exponent.exp2()[..., None]
    codes = nearest(parts / scale, E2M1).view(n, k)
    packed = (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)
    tensors = {"weight_packed": packed, "weight_scale": (exponent + 127).to(torch.uint8)}
    return Quantized(tensors, (torch.tensor(E2M1)[codes].view(n, -1, 32) * scale).view(n, k))


def nearest(values: Tensor, table: list[float]) -> Tensor:
    return (values[..., None] - torch.tensor(table)).abs().argmin(-1)


def bnb_int8(weight: Tensor) -> Quantized:
    largest = weight.abs().amax(1)
    codes = (weight * 127 / largest[:, None]).round().to(torch.int8)
    return Quantized({"weight": codes, "SCB": largest}, codes.float() * (largest / 127)[:, None])


def bnb_nf4(weight: Tensor, nested: bool = False) -> Quantized:
    blocks = weight.view(-1, 64)
    absmax = blocks.abs().amax(1)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": list(weight.shape)}
    tensors = {"weight.quant_map": torch.tensor(NF4)}
    if nested:
        table = torch.linspace(-1, 1, 256)
        offset = float(absmax.mean())
        groups = torch.arange(len(absmax)) // 256
        outer = torch.stack([(absmax - offset)[groups == i].abs().max() for i in range(int(groups[-1]) + 1)])
        codes = nearest((absmax - offset) / outer[groups], table.tolist())
        absmax = table[codes] * outer[groups] + offset
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        tensors |= {"weight.absmax": codes.to(torch.uint8)}
        tensors |= {"weight.nested_absmax": outer, "weight.nested_quant_map": table}
    else:
        tensors["weight.absmax"] = absmax
    codes = nearest(blocks / absmax[:, None], NF4).view(-1)
    tensors["weight"] = (codes[::2] << 4 | codes[1::2]).to(torch.uint8)[:, None]
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return Quantized(tensors, (torch.tensor(NF4)[codes].view(-1, 64) * absmax[:, None]).view_as(weight))


def torchao_intx(weight: Tensor, bits: int = 4, group: int = 32) -> Quantized:
    codes, scale, zero = rounded(weight, bits, group, False)
    half = 1 << bits - 1
    tensors = {
        "_weight_qdata": (codes - half).to(torch.int8),
        "_weight_scale": scale,
        "_weight_zero_point": (zero - half).to(torch.int8),
    }
    data = {"block_size": [1, group], "target_dtype": {"_type": "torch.dtype", "_data": f"int{bits}"}}
    about = {"_type": "IntxUnpackedToInt8Tensor", "_data": data}
    return Quantized(tensors, dequantized(codes, scale, zero, torch.arange(weight.shape[1]) // group), about)


def torchao_int8(weight: Tensor, activations: bool = False) -> Quantized:
    made = w8a8(weight)
    tensors = {"_weight_qdata": made.tensors["weight"], "_weight_scale": made.tensors["weight_scale"]}
    kwargs = {"_type": "QuantizeTensorToInt8Kwargs", "_data": {}} if activations else None
    data = {"block_size": [1, weight.shape[1]], "act_quant_kwargs": kwargs}
    return Quantized(tensors, made.weight, {"_type": "Int8Tensor", "_data": data})


def torchao_int4(weight: Tensor, group: int = 32) -> Quantized:
    """w = scale * code + zero point, of codes with a sign."""
    codes, scale, zero = rounded(weight, 4, group, False)
    signed = codes - 8
    offset = (scale.float() * (8 - zero)).half()
    columns = torch.arange(weight.shape[1]) // group
    exact = signed.float() * scale.float()[:, columns] + offset.float()[:, columns]
    packed = (signed[:, ::2] & 15 | (signed[:, 1::2] & 15) << 4).to(torch.uint8).view(torch.int8)
    tensors = {"_weight_qdata": packed, "_weight_scale": scale.t(), "_weight_zero_point": offset.t()}
    return Quantized(tensors, exact, {"_type": "Int4Tensor", "_data": {"block_size": [1, group]}})
