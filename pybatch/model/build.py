"""From the config of a model to its decoder, layer by layer to the blocks with their weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import cast

from torch import Tensor
from torch.nn import functional

from pybatch.machine.ranks import Stages
from pybatch.model.blocks.attention import Attention
from pybatch.model.blocks.gated_delta_net import GatedDeltaNet
from pybatch.model.blocks.latent_attention import LatentAttention
from pybatch.model.blocks.mlp import EPILOGUES, MLP, Xielu
from pybatch.model.blocks.mlp_beside_moe import MLPBesideMoE
from pybatch.model.blocks.moe import MoE, SharedMLP
from pybatch.model.blocks.token_inputs import TokenInput, TokenInputs
from pybatch.model.build_latent import latent_attention
from pybatch.model.calibration import pack_by_running
from pybatch.model.config import (
    AttentionConfig,
    GatedDeltaConfig,
    LatentAttentionConfig,
    LayerConfig,
    MLPBesideMoEConfig,
    MLPConfig,
    MoEConfig,
)
from pybatch.model.decoder import Decoder, Layer
from pybatch.model.layers import Norm, NormedLinear, NormOfAllHeads, ResidualLinear
from pybatch.model.offload import HostLayers
from pybatch.model.role_tensors import Grouped
from pybatch.model.rope import NO_ROPE, rotary_table
from pybatch.model.rows import Heads
from pybatch.model.stage import StageDecoder
from pybatch.model.weights import WeightLoader


def build_decoder(
    load: WeightLoader, max_model_len: int, stages: Stages | None = None, host: HostLayers | None = None
) -> Decoder:
    """The decoder, with rotary tables of max_model_len positions. stages: of which the config is one's. host: layers
    whose weights are to be there. Raises ModelError as WeightLoader does."""

    def layer(index: int, config: LayerConfig) -> Layer:
        made = build_layer(load, config, load.config.first_layer + index)
        return made if host is None else host.keep(index, made)

    config = load.config
    is_first, is_last = stages is None or stages.is_first, stages is None or stages.is_last
    kind = Decoder if stages is None else partial(StageDecoder, stages=stages)
    with load.packer.working():
        vocab, hidden = config.vocab_size, config.hidden_size
        embedding = head = None
        if is_first or (is_last and config.tie_word_embeddings):
            embedding = load.linear({"embedding": vocab}, hidden)
        if is_last:
            head = NormedLinear(load.norm("final_norm", hidden), load.head(embedding))
        decoder = kind(
            config,
            load.dtype,
            embedding=embedding if is_first else None,
            positions=load.linear({"positions": config.learned_positions}, hidden)
            if config.learned_positions and is_first
            else None,
            layers=[layer(index, each) for index, each in enumerate(config.layers)],
            head=head,
            rotary={rope: rotary_table(rope, max_model_len).to(load.device) for rope in config.ropes},
            score=load.score() if config.num_labels and is_last else None,
            token_inputs=token_inputs(load) if config.token_vocab else None,
            host=host,
        )
        if load.smooths:
            pack_by_running(decoder)
    return decoder


def build_layer(load: WeightLoader, config: LayerConfig, index: int) -> Layer:
    token = token_input(load, config.token_width, index) if config.token_width else None
    norm = "mixer_norm" if config.one_norm else "mlp_norm"
    layer = Layer(
        mixer=mixer(load, config.mixer, index),
        mlp=inner_block(load, config.mlp, index, norm),
        parallel=config.parallel,
        token=token,
    )
    return scaled(layer, load.number("layer_scale", index)) if config.scaled else layer


def mixer(
    load: WeightLoader, config: AttentionConfig | LatentAttentionConfig | GatedDeltaConfig, index: int
) -> Attention | LatentAttention | GatedDeltaNet:
    if isinstance(config, AttentionConfig):
        return attention(load, config, index)
    if isinstance(config, LatentAttentionConfig):
        return latent_attention(load, config, index)
    return gated_delta_net(load, config, index)


def inner_block(
    load: WeightLoader, config: MLPConfig | MoEConfig | MLPBesideMoEConfig, index: int, norm: str
) -> MLP | MoE | MLPBesideMoE:
    """norm: the role of what an MLP reads."""
    if isinstance(config, MoEConfig):
        return moe(load, config, index)
    if isinstance(config, MLPConfig):
        return mlp(load, config, index, norm=norm)
    norms = (load.norm(role, load.config.hidden_size, index) for role in ("beside_mlp_norm", "beside_moe_norm"))
    of_mlp, of_moe = cast("Iterator[Norm]", norms)
    return MLPBesideMoE(
        mlp=mlp(load, config.mlp, index), moe=moe(load, config.moe, index), mlp_norm=of_mlp, moe_norm=of_moe
    )


def scaled(layer: Layer, scale: float) -> Layer:
    """The layer whose last block multiplies the residual stream too."""
    if layer.token is not None:
        return replace(layer, token=replace(layer.token, out=replace(layer.token.out, scale=scale)))
    if isinstance(layer.mlp, MLPBesideMoE):
        return replace(layer, mlp=replace(layer.mlp, mlp=_scaled_mlp(layer.mlp.mlp, scale)))
    assert isinstance(layer.mlp, MLP)
    return replace(layer, mlp=_scaled_mlp(layer.mlp, scale))


def _scaled_mlp(mlp: MLP, scale: float) -> MLP:
    return replace(mlp, down=replace(mlp.down, scale=scale))


def token_inputs(load: WeightLoader) -> TokenInputs:
    config, count = load.config, load.config.num_layers
    width = config.layers[0].token_width
    return TokenInputs(
        embedding=load.linear({"token_embedding": config.token_vocab}, count * width),
        projection=load.linear({"token_projection": count * width}, config.hidden_size),
        norm=load.vector("token_norm", width),
        eps=config.norm.eps * config.hidden_size,
        layers=count,
    )


def token_input(load: WeightLoader, width: int, index: int) -> TokenInput:
    hidden = load.config.hidden_size
    return TokenInput(
        gate=load.linear({"token_gate": width}, hidden, index),
        out=ResidualLinear(
            load.linear({"token_out": hidden}, width, index), load.norm("token_post_norm", hidden, index)
        ),
        index=index,
        width=width,
        layers=load.config.num_layers,
    )


def attention(load: WeightLoader, config: AttentionConfig, index: int) -> Attention:
    hidden, stored, dim = load.config.hidden_size, config.own_head_dim, config.head_dim
    turning = stored if config.rope == NO_ROPE else config.rope.rotary_dim  # files have all layers alike
    own_keys = config.kv_of is None
    heads = {"q": Heads(config.num_heads, stored, dim, turning)}
    if own_keys:
        heads["k"] = Heads(config.num_kv_heads, stored, dim, turning)
    if own_keys and not config.v_is_k:
        heads["v"] = Heads(config.num_kv_heads, stored, dim)

    def head_norm(role: str, of: Heads) -> Tensor:
        """Over heads that are filled up with zeros, the mean of squares is less by what is filled: the weights make up
        for it, and the eps is less by it too."""
        if config.qk_norm_over == "own":
            return load.vectors(role, of, index)
        width, turned = (of.stored_width, 0) if of_all else (stored, turning)
        weight = load.vector(role, width, index, turning=turned)
        weight = weight + load.config.norm.offset if load.config.norm.offset else weight
        if stored == dim:
            return weight
        return functional.pad(weight.view(-1, stored) * (stored / dim) ** 0.5, (0, dim - stored)).flatten()

    def head_norm_bias(role: str) -> Tensor | None:
        return load.vector(role, stored, index, ".bias", turning=turning) if config.qk_norm_bias else None

    of_all, norm = config.qk_norm_over == "all", replace(load.config.norm, eps=load.config.norm.eps * stored / dim)
    norm_of_all = None
    if config.qk_norm and of_all:
        q_norm = head_norm("q_norm", load.whole(heads["q"]))
        k_norm = head_norm("k_norm", load.whole(heads["k"], config.kv_ranks))
        norm_of_all = load.norm_of_all_heads(NormOfAllHeads(q_norm, k_norm, norm.eps), config.kv_ranks)
    own_norm = config.qk_norm and not of_all
    if config.gated:
        heads["attention_gate"] = Heads(config.num_heads, stored, dim)
    return Attention(
        config=config,
        index=index,
        qkv=load.behind_norm(
            "mixer_norm",
            {role: each.stored_width for role, each in heads.items()},
            hidden,
            index,
            bias=config.bias,
            fused="qkv",
            heads=heads,
            grouped={
                "q_and_gate": Grouped(("q", "attention_gate"), config.num_heads),
                "qkv_of_heads": Grouped(("q", "k", "v"), config.num_kv_heads),
            },
        ),
        norm_of_all=norm_of_all,
        q_norm=head_norm("q_norm", heads["q"]) if own_norm else None,
        k_norm=head_norm("k_norm", heads["k"]) if own_norm and own_keys else None,
        q_norm_bias=head_norm_bias("q_norm"),
        k_norm_bias=head_norm_bias("k_norm"),
        v_norm=load.ones(dim) * (stored / dim) ** 0.5 if config.v_norm and own_keys else None,
        norm=norm,
        sinks=load.exact_of_heads("sinks", [config.num_heads], index) if config.sinks else None,
        out=ResidualLinear(
            load.linear({"attention_out": hidden}, heads["q"], index, bias=config.out_bias),
            load.norm("mixer_post_norm", hidden, index),
            load.config.scales.residual,
        ),
    )


def gated_delta_net(load: WeightLoader, config: GatedDeltaConfig, index: int) -> GatedDeltaNet:
    hidden, heads = load.config.hidden_size, [config.value_heads]
    keys, values = config.key_width, config.value_width
    rows = {"delta_q": keys, "delta_k": keys, "delta_v": values, "delta_gate": values}
    rows |= {"delta_b": config.value_heads, "delta_a": config.value_heads}
    return GatedDeltaNet(
        config=config,
        projection=load.behind_norm(
            "mixer_norm",
            rows,
            hidden,
            index,
            grouped={
                "delta_qkv": Grouped(("delta_q", "delta_k", "delta_v"), None),
                "delta_qkvz": Grouped(("delta_q", "delta_k", "delta_v", "delta_gate"), config.key_heads),
                "delta_ba": Grouped(("delta_b", "delta_a"), config.key_heads),
            },
        ),
        conv=load.exact_of_heads("delta_conv", [keys, keys, values], index, ".weight", rest=(1, config.taps))[:, 0]
        .t()
        .to(load.dtype)
        .contiguous(),
        rate=load.exact_of_heads("delta_rate", heads, index).exp(),
        dt_bias=load.exact_of_heads("delta_bias", heads, index),
        norm=load.vector("delta_norm", config.value_dim, index),
        norm_eps=load.config.norm.eps,
        out=ResidualLinear(load.linear({"delta_out": hidden}, values, index)),
    )


def mlp(load: WeightLoader, config: MLPConfig, index: int, role: str = "", *, norm: str = "mlp_norm") -> MLP:
    """role: in front of the roles of its projections. norm: the role of what it reads."""
    hidden, width = load.config.hidden_size, config.width
    rows = {f"{role}gate": width, f"{role}up": width} if config.gated else {f"{role}up": width}
    fused = f"{role}gate_up" if config.gated else ""
    return MLP(
        config=config,
        xielu=xielu(load, index) if config.activation == "xielu" else None,
        gate_up=load.behind_norm(norm, rows, hidden, index, bias=config.bias, fused=fused, gated=config.gated),
        down=ResidualLinear(
            load.linear({f"{role}down": hidden}, width, index, bias=config.bias),
            load.norm("mlp_post_norm", hidden, index),
            load.config.scales.residual,
        ),
    )


def xielu(load: WeightLoader, index: int) -> Xielu:
    p, n, beta, eps = (load.number(f"xielu_{name}", index) for name in ("alpha_p", "alpha_n", "beta", "eps"))
    return Xielu(math.log1p(math.exp(p)), beta + math.log1p(math.exp(n)), beta, eps)


def moe(load: WeightLoader, config: MoEConfig, index: int) -> MoE:
    hidden, count, width = load.config.hidden_size, config.experts, config.width
    norm = "expert_norm" if load.family.has("expert_norm") else "mlp_norm"
    router = load.router(norm, "router", count, hidden, index, bias=config.router_bias)
    if config.router_scale:
        weight = load.exact("router_scale", (hidden,), index, "") * hidden**-0.5
        router = replace(router, norm=Norm(weight.to(load.dtype), load.config.norm.eps))
    return MoE(
        config=config,
        router=router,
        correction=load.exact("router_correction", (count,), index, "") if config.correction else None,
        expert_scale=load.exact("expert_scale", (count,), index, "") if config.expert_scale else None,
        gate_up=load.experts_behind_norm(
            norm,
            count,
            {"expert_gate": width, "expert_up": width},
            hidden,
            index,
            whole="experts_gate_up",
            bias=config.bias,
            gated=config.activation in EPILOGUES,
        ),
        down=load.experts(count, {"expert_down": hidden}, width, index, whole="experts_down", bias=config.bias),
        shared=shared_mlp(load, config, index) if config.shared_width else None,
    )


def shared_mlp(load: WeightLoader, config: MoEConfig, index: int) -> SharedMLP:
    hidden, shared = load.config.hidden_size, mlp(load, config.shared, index, "shared_")
    if not config.shared_gate:
        return SharedMLP(mlp=shared, gate=None)
    stack = ResidualLinear(load.one_expert(shared.down.linear, hidden))
    return SharedMLP(mlp=replace(shared, down=stack), gate=load.router("mlp_norm", "shared_router", 1, hidden, index))
