"""The block of latent attention with its weights."""

from __future__ import annotations

from dataclasses import replace

from pybatch.model.blocks.latent_attention import LatentAttention
from pybatch.model.config import LatentAttentionConfig
from pybatch.model.layers import NormedLinear, OfHeads, ResidualLinear
from pybatch.model.rows import Rows, Transposed, sliced
from pybatch.model.weights import WeightLoader


def latent_attention(load: WeightLoader, config: LatentAttentionConfig, index: int) -> LatentAttention:
    hidden, latents = load.config.hidden_size, config.latent + config.rope.rotary_dim
    rows = {"q_a": config.query_latent} if config.query_latent else {"q": config.q_width}
    biased = [role for role in (*rows, "kv_a") if config.bias and role != "q"]
    keys, values = of_heads(load, config, index)
    return LatentAttention(
        config=config,
        projection=load.behind_norm("mixer_norm", {**rows, "kv_a": latents}, hidden, index, bias=biased),
        queries=of_latents(load, config, index) if config.query_latent else None,
        norm=load.vector("kv_a_norm", config.latent, index),
        keys=OfHeads([load.matrix(head) for head in keys]),
        values=OfHeads([load.matrix(head) for head in values]),
        out=ResidualLinear(
            load.linear({"attention_out": hidden}, config.num_heads * config.value_dim, index, bias=config.out_bias)
        ),
    )


def of_latents(load: WeightLoader, config: LatentAttentionConfig, index: int) -> NormedLinear:
    queries = load.behind_norm("q_a_norm", {"q_b": config.q_width}, config.query_latent, index)
    assert queries.norm is not None
    return replace(queries, norm=replace(queries.norm, eps=config.norm_eps))


def of_heads(load: WeightLoader, config: LatentAttentionConfig, index: int) -> tuple[list[Rows], list[Rows]]:
    """Each head's key projection, transposed, and its value projection: one below the other in one tensor; or, in GGUF
    files, two stacks."""
    heads, of_all = range(config.num_heads), load.whole(config.num_heads)
    key, value, latent = config.key_dim, config.value_dim, config.latent
    if f"{load.family.tensor('k_b', index)}.weight" in load.checkpoint:
        keys, values = (
            load.own(load.stack(role, (of_all, *shape), index))
            for role, shape in (("k_b", (latent, key)), ("v_b", (value, latent)))
        )
        return (
            [sliced(keys, head * latent, (head + 1) * latent) for head in heads],
            [sliced(values, head * value, (head + 1) * value) for head in heads],
        )
    both = load.own(load.tensor(f"{load.family.tensor('kv_b', index)}.weight", (of_all * (key + value), latent)))
    each = [sliced(both, head * (key + value), (head + 1) * (key + value)) for head in heads]
    return [Transposed(sliced(head, 0, key)) for head in each], [sliced(head, key, key + value) for head in each]
