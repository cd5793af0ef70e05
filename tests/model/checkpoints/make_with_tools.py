"""Makes tests/data/quantized: one matrix by each of the tools that quantise checkpoints, and what the tool itself
dequantises it to. Run by hand, where they are installed:

    python make_with_tools.py AUTOAWQ GPTQMODEL

The arguments are the folders of the unpacked sources of autoawq 0.2.9 and gptqmodel 7.7.0, of which only the packing is
run, since neither imports without a GPU's libraries; compressed-tensors 0.20.0, torchao 0.18.0 and bitsandbytes 0.50.2
are imported as installed.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

DATA = Path(__file__).parents[2] / "data" / "quantized"
N, K, GROUP = 32, 128, 32


def weights() -> Tensor:
    weight = torch.randn(N, K, generator=torch.Generator().manual_seed(0)) * 0.1
    weight[3, :GROUP] = weight[3, :GROUP].abs()  # a group whose zero point is 0
    return weight


def save(name: str, config: dict[str, Any], tensors: dict[str, Tensor], expected: Tensor, **texts: str) -> None:
    stored = {f"m.{key}": tensor.detach().contiguous() for key, tensor in tensors.items()}
    texts["quantization_config"] = json.dumps(config)
    save_file({**stored, "expected": expected.detach().float().contiguous()}, DATA / f"{name}.safetensors", texts)
    print(name, {key: (tensor.dtype, list(tensor.shape)) for key, tensor in tensors.items()})


def grouped(weight: Tensor, bits: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Scales and zero points [N, groups], and the weights that they can hold."""
    parts, highest = weight.view(N, -1, GROUP), (1 << bits) - 1
    low, high = parts.amin(2).clamp(max=0), parts.amax(2).clamp(min=0)
    scale = ((high - low) / highest).half().float()
    zero = (-low / scale).round().clamp(0, highest)
    codes = ((parts / scale[..., None]).round() + zero[..., None]).clamp(0, highest)
    return scale, zero, ((codes - zero[..., None]) * scale[..., None]).view(N, K)


def autoawq(source: Path) -> None:
    for name in ("awq", "awq.modules", "awq.modules.linear"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    scale, zero, weight = grouped(weights())
    linear = nn.Linear(K, N, bias=False)
    linear.weight.data = weight
    made = WQLinear_GEMM.from_linear(linear, 4, GROUP, False, scale.t().contiguous(), zero.t().contiguous())
    expected = dequantize_gemm(made.qweight, made.qzeros, made.scales, 4, GROUP).t()
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    save("autoawq", config, dict(made.state_dict()), expected)


def gptqmodel(source: Path) -> None:
    """In version 1, as GPTQModel converts what it packs: with one borrow between the zero points of a word."""
    path = source / "gptqmodel/nn_modules/qlinear/__init__.py"
    functions = [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.FunctionDef)]
    pack = ast.Module([each for each in functions if each.name == "pack_original"], [])
    known: dict[str, Any] = {"t": torch, "np": np, "math": math, "nn": nn, "transformers": transformers}
    known |= {"_ConvNd": nn.modules.conv._ConvNd, "THREADPOOLCTL": types.SimpleNamespace()}
    known["THREADPOOLCTL"].threadpool_limits = lambda _: contextlib.nullcontext()
    exec(compile(pack, str(path), "exec"), known)

    for bits in (4, 8, 3):
        scale, zero, weight = grouped(weights(), bits)
        linear = nn.Linear(K, N, bias=False)
        linear.weight.data = weight
        made = nn.Module()
        vars(made).update(bits=bits, maxq=(1 << bits) - 1, pack_dtype_bits=32, pack_factor=32 // bits, planar=False)
        vars(made).update(pack_np_math_dtype=np.uint32, pack_np_dtype=np.int32, pack_dtype=torch.int32)
        known["pack_original"](made, linear, scale, zero, torch.arange(K, dtype=torch.int32) // GROUP)
        tensors = {key: getattr(made, key) for key in ("qweight", "qzeros", "scales", "g_idx")}
        version = "gptq_v2" if bits == 3 else "gptq"
        if version == "gptq":
            tensors["qzeros"] = tensors["qzeros"] - sum(1 << at for at in range(0, 32, bits))
        config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "checkpoint_format": version}
        save(f"gptqmodel-{bits}", config, tensors, weight)


def compressed_tensors() -> None:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    int8, fp8 = {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}
    cases: dict[str, tuple[str, dict[str, Any], bool]] = {
        "w4a16": ("pack-quantized", {"num_bits": 4, "strategy": "group", "group_size": GROUP}, False),
        "w4a16-zeros": (
            "pack-quantized",
            {"num_bits": 4, "strategy": "group", "group_size": GROUP, "symmetric": False},
            False,
        ),
        "w8a16": ("pack-quantized", {**int8, "strategy": "channel"}, False),
        "w8a8": ("int-quantized", {**int8, "strategy": "channel"}, True),
        "fp8": ("float-quantized", {**fp8, "strategy": "channel"}, True),
        "nvfp4": (
            "nvfp4-pack-quantized",
            {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
            False,
        ),
    }
    for name, (form, arguments, activations) in cases.items():
        args = QuantizationArgs(**arguments)
        inputs = QuantizationArgs(**{**fp8, "type": args.type}, strategy="token", dynamic=True) if activations else None
        scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs, format=form)
        weight = weights()
        size = args.group_size or K
        parts = weight.view(N, -1, size)
        whole = 6 * 448 / weight.abs().max().view(1) if name == "nvfp4" else None
        scale, zero = calculate_qparams(parts.amin(2), parts.amax(2), args, global_scale=whole)
        state = {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}
        if whole is not None:
            state["weight_global_scale"] = whole
        compressor = BaseCompressor.get_value_from_registry(form)
        stored = compressor.compress(dict(state), scheme)
        if arguments.get("symmetric", True):
            stored.pop("weight_zero_point", None)
        expected = compressor.decompress(dict(stored), scheme)["weight"]
        group = json.loads(scheme.model_dump_json())
        config = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
        save(f"compressed-tensors-{name}", config, stored, expected)


def bitsandbytes() -> None:
    import bitsandbytes.functional as bnb

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    for name, kind, nested in (("nf4", "nf4", False), ("nf4-nested", "nf4", True), ("fp4", "fp4", False)):
        packed, state = bnb.quantize_4bit(weights(), blocksize=64, quant_type=kind, compress_statistics=nested)
        tensors = {f"weight.{key}": tensor for key, tensor in state.as_dict(packed=True).items()}
        save(f"bitsandbytes-{name}", config, {"weight": packed, **tensors}, bnb.dequantize_4bit(packed, state))
    codes, largest, _ = bnb.int8_vectorwise_quant(weights().half())
    expected = bnb.int8_vectorwise_dequant(codes, largest)
    tensors = {"weight": codes, "SCB": largest, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    save("bitsandbytes-int8", {"quant_method": "bitsandbytes", "load_in_8bit": True}, tensors, expected)


def torchao() -> None:
    import torchao.quantization as ao
    from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict

    configs = {
        "int8": ao.Int8WeightOnlyConfig(version=2),
        "w8a8": ao.Int8DynamicActivationInt8WeightConfig(version=2),
        "int4": ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(GROUP), version=2),
        "float8": ao.Float8WeightOnlyConfig(version=2),
    }
    for name, config in configs.items():
        model = nn.ModuleDict({"m": nn.Linear(K, N, bias=False)})
        model["m"].weight.data = weights()
        ao.quantize_(model, config)
        tensors, texts = flatten_tensor_state_dict(model.state_dict())
        stored = {key.removeprefix("m."): tensor for key, tensor in tensors.items()}
        expected = model["m"].weight.dequantize()
        save(f"torchao-{name}", {"quant_method": "torchao"}, stored, expected, **texts)


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    autoawq(Path(sys.argv[1]))
    gptqmodel(Path(sys.argv[2]))
    compressed_tensors()
    bitsandbytes()
    torchao()
