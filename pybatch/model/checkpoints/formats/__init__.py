"""Quantised checkpoints: one file a format, which makes a matrix of a module's tensors. What a tensor is, its file
says: lists of modules that are not quantised need not be read, for those have plain weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pybatch.model.checkpoints.files import read_json
from pybatch.model.checkpoints.formats.awq import AWQ
from pybatch.model.checkpoints.formats.bitsandbytes import BitsAndBytes
from pybatch.model.checkpoints.formats.compressed_tensors import CompressedTensors
from pybatch.model.checkpoints.formats.fp8 import FP8
from pybatch.model.checkpoints.formats.gptq import GPTQ
from pybatch.model.checkpoints.formats.modelopt import ModelOpt
from pybatch.model.checkpoints.formats.mxfp4 import MXFP4
from pybatch.model.checkpoints.formats.torchao import TorchAO
from pybatch.model.checkpoints.stored import StoredTensors
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.rows import Rows

REFUSED = {  # and why
    "hqq": "whose tensors are packed in several ways that its files do not tell",
    "eetq": "whose int8 weights are laid out for one kind of GPU",
    "quanto": "whose tensors are packed as its own package is to unpack them",
    "mlx": "whose tensors are laid out for that library",
    **dict.fromkeys(("exl2", "exl3"), "whose tensors are laid out for ExLlama's GPU kernels"),
}
# What names of tensors end in, and whose they are, where a config.json does not say.
SIGNS = {
    ".weight.absmax": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "gptq or awq",
    ".weight_packed": "compressed-tensors",
    ".weight_scale_inv": "fp8",
    ".W_q": "hqq",
    ".weight._data": "quanto",
    ".biases": "mlx",
    ".q_weight": "exl2",
    ".trellis": "exl3",
}
FILES = ("config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")  # that tell the method
KEYS = ("quantization_config", "compression_config")  # the second of older llm-compressors
QUOTES = "\"'"


class Format(Protocol):
    """How matrices of one method are stored. Both raise ModelError."""

    def __init__(self, config: Fields, tensors: StoredTensors) -> None: ...

    def holds(self, module: str) -> bool: ...  # whether the module's weight is quantised

    def matrix(self, module: str) -> Rows: ...


FORMATS: Mapping[str, type[Format]] = {
    "gptq": GPTQ,
    "awq": AWQ,
    "compressed-tensors": CompressedTensors,
    "fp8": FP8,
    "fbgemm_fp8": FP8,
    "modelopt": ModelOpt,
    "bitsandbytes": BitsAndBytes,
    "torchao": TorchAO,
    "mxfp4": MXFP4,
}
METHODS = {  # of vLLM's argument, and which quant_method they ask for
    **{name: name for name in (*FORMATS, "auto-round")},
    "awq_marlin": "awq",
    "gptq_marlin": "gptq",
    "modelopt_fp4": "modelopt",
}


def take_quantization(config: dict[str, Any], directory: Path) -> Mapping[str, Any]:
    """How a model is quantised, taken out of its config.json, or of the files that tools wrote before there was a place
    for it there; {} if it is not."""
    text = config.get("text_config")
    places = [config, text] if isinstance(text, dict) else [config]
    found = [Fields(place, "config.json").mapping(key) for place in places for key in KEYS]
    for place in places:
        for key in KEYS:
            place.pop(key, None)
    inside = next((each for each in found if each), None)
    if config.pop("quantization", None):  # MLX says it twice
        return {"quant_method": "mlx"}
    if inside is not None:
        return inside
    _, autogptq, autoawq, modelopt = (directory / name for name in FILES)
    old = read_json(autogptq)
    if old.get("bits"):
        return {"quant_method": "gptq", **old}
    old = read_json(autoawq)
    if old.get("w_bit"):
        return {"quant_method": "awq", "bits": old["w_bit"], "group_size": old.get("q_group_size", -1), **old}
    return {"quant_method": "modelopt"} if read_json(modelopt).get("quantization") else {}


def quantization_of(tensors: StoredTensors, name: str) -> Mapping[str, Any]:
    """What the names of tensors tell alone; {} if they are of no method. Raises ModelError for one whose settings
    config.json would have to tell."""
    for tensor in tensors:
        method = next((SIGNS[end] for end in SIGNS if tensor.endswith(end)), None)
        if method in ("bitsandbytes", *REFUSED):
            return {"quant_method": method}
        if method is not None:
            raise ModelError(
                f"{name}: {short(tensor)} is of a model quantised by {method}, of which config.json has no "
                "quantization_config: expected the config.json that the model was saved with"
            )
    return {}


def open_format(config: Mapping[str, Any], tensors: StoredTensors, name: str) -> Format:
    """config: as take_quantization finds it, not empty. Raises ModelError for a method that is not known."""
    method = config.get("quant_method")
    if method is None and ("load_in_4bit" in config or "load_in_8bit" in config):
        method = "bitsandbytes"
    if method == "auto-round":  # which writes the layouts of others
        method = "awq" if "awq" in str(config.get("packing_format")) else "gptq"
        config = {key: value for key, value in config.items() if key != "format"}
    if method not in list(FORMATS):
        why = f", {REFUSED[method]}" if method in list(REFUSED) else ""
        raise ModelError(
            f"{name} is quantised by {short(method).strip(QUOTES)}{why}; expected one of {', '.join(FORMATS)}, or "
            "float32, float16 or bfloat16 weights: take the model that it was made of (quantization= makes int8 of it "
            "as it loads), or a GGUF file"
        )
    return FORMATS[method](Fields(config, f"quantization_config of {name}"), tensors)
