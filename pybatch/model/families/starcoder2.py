"""StarCoder2: LayerNorm, MLPs without gates, and one flag for all biases."""

from __future__ import annotations

from pybatch.model.config import NormConfig
from pybatch.model.families.family import Family, GGUFFamily, Shape
from pybatch.model.families.llama import alike, with_biases, with_windows
from pybatch.model.families.source import Source


def shape(source: Source) -> Shape:
    source.expect(norm_type="layer_norm", mlp_type="default")  # what BigCode's own configs say of what is always so
    source.get("rms_norm_eps")  # norm_epsilon once more
    decoder = alike(
        source,
        context=4096,
        kv_heads=2,
        tied=True,
        activation="gelu_pytorch_tanh",
        gated=False,
        norm=NormConfig(kind="layer", eps=source.norm_eps("norm_epsilon", 1e-5), bias=True),
    )
    windows = [source.window()] * len(decoder.layers)
    source.expect_layer_types(windows)
    bias = source.flag("use_bias", True)
    return with_windows(with_biases(decoder, qkv=bias, out=bias, mlp=bias), windows)


FAMILY = Family(
    model_type="starcoder2",
    architecture="Starcoder2ForCausalLM",
    shape=shape,
    names={"up": "mlp.c_fc", "down": "mlp.c_proj"},
    gguf=GGUFFamily(architecture="starcoder2", keys={"norm_epsilon": "attention.layer_norm_epsilon"}),
)
