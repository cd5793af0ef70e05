"""How llama.cpp's converter lays out tensors otherwise than Hugging Face: the way back, as views of the file's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pybatch.model.checkpoints.formats.matrices import requantized
from pybatch.model.config import AttentionConfig, GatedDeltaConfig, LayerConfig, ModelConfig
from pybatch.model.errors import ModelError
from pybatch.model.families.family import LLAMA_NAMES, Family
from pybatch.model.fields import short
from pybatch.model.rope import NO_ROPE
from pybatch.model.rows import BlockRows, Held, Rows, reordered, reordered_columns, transposed, turned

View = Callable[[Rows], Rows]
XIELU = "xielu_"  # roles of numbers that are in the file's metadata begin so


@dataclass(frozen=True, slots=True)
class Layout:
    """Of one of Hugging Face's tensors. parts: the names of those that the file has, one below the other, in its
    place."""

    parts: tuple[str, ...]
    view: View


def layouts(family: Family, config: ModelConfig) -> dict[str, Layout]:
    """By their names, the tensors that are laid out otherwise."""
    found: dict[str, Layout] = {}
    for index, layer in enumerate(config.layers):
        prefix = family.tensor("layer").format(index)
        for role, suffix, view, parts in _of_layer(family, layer):
            name = family.tensor(role, index) + suffix
            found[name] = Layout(tuple(f"{prefix}.{part}{suffix}" for part in parts) or (name,), view)
    return found


def numbers(family: Family, metadata: Mapping[str, Any], layers: int) -> dict[str, Rows]:
    """By their names, the tensors of one number that are in the metadata. Raises ModelError for other values."""
    found: dict[str, Rows] = {}
    for role in (role for role in LLAMA_NAMES if role.startswith(XIELU)):
        key = f"xielu.{role.removeprefix(XIELU)}"
        values = metadata.get(key)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != layers or not all(isinstance(v, float) for v in values):
            raise ModelError(f"{key}: expected a number for each of {layers} layers, got {short(values)}")
        found |= {family.tensor(role, layer): Held(torch.tensor([value])) for layer, value in enumerate(values)}
    return found


Found = tuple[str, str, View, tuple[str, ...]]  # role, suffix, view, and what there is in its place; (): itself


def _of_layer(family: Family, layer: LayerConfig) -> Iterator[Found]:
    assert family.gguf is not None
    if family.by_input:
        for role in ("qkv", "attention_out", "up", "down"):
            yield role, ".weight", transposed, ()
    for role, roles in family.gguf.stacked.items():
        yield role, ".weight", lambda rows: rows, tuple(LLAMA_NAMES[each] for each in roles)
    if isinstance(layer.mixer, AttentionConfig):
        yield from _of_attention(family, layer.mixer)
    elif isinstance(layer.mixer, GatedDeltaConfig):
        yield from _of_delta_net(family, layer.mixer)


def _of_attention(family: Family, config: AttentionConfig) -> Iterator[Found]:
    assert family.gguf is not None
    dim, q, kv = config.own_head_dim, config.num_heads, config.num_kv_heads
    for suffix in (".weight", ".bias"):
        if family.has("qkv_of_heads"):
            yield "qkv_of_heads", suffix, partial(reordered, order=by_groups([q * dim, kv * dim, kv * dim], kv)), ()
        elif family.gguf.adjacent_pairs and not family.adjacent_pairs:
            turning = dim if config.rope == NO_ROPE else config.rope.rotary_dim  # files have all layers alike
            yield "q", suffix, partial(turned, heads=q, rotary_dim=turning), ()
            yield "k", suffix, partial(turned, heads=kv, rotary_dim=turning), ()


def _of_delta_net(family: Family, config: GatedDeltaConfig) -> Iterator[Found]:
    assert family.gguf is not None
    keys, values, dim = config.key_width, config.value_width, config.value_dim
    tiled = family.gguf.tiled_value_heads and config.key_heads != config.value_heads
    heads = from_tiles(config.key_heads, config.value_heads) if tiled else torch.arange(config.value_heads)
    of_values = (heads[:, None] * dim + torch.arange(dim)).flatten()
    behind_keys = torch.cat([torch.arange(2 * keys), 2 * keys + of_values])
    yield "delta_rate", "", lambda rows: Held((-_whole(rows)).log()[heads]), ()  # the file has -exp of it
    yield "delta_conv", ".weight", lambda rows: Held(_whole(rows)[behind_keys, None]), ()
    if family.has("delta_qkvz"):
        order = by_groups([keys, keys, values, values], config.key_heads)
        together = "linear_attn.in_proj_qkv", "linear_attn.in_proj_z"
        yield "delta_qkvz", ".weight", partial(reordered, order=order), together
    if tiled:
        yield "delta_qkv", ".weight", partial(reordered, order=behind_keys), ()
        yield "delta_gate", ".weight", partial(reordered, order=of_values), ()
        yield "delta_b", ".weight", partial(reordered, order=heads), ()
        yield "delta_a", ".weight", partial(reordered, order=heads), ()
        yield "delta_bias", "", partial(reordered, order=heads), ()
        yield "delta_out", ".weight", partial(_of_heads, heads=heads, dim=dim), ()


def _whole(rows: Rows) -> Tensor:
    return rows[0 : rows.shape[0]].float()


def _of_heads(rows: Rows, heads: Tensor, dim: int) -> Rows:
    """The columns of heads in this order, each of so many."""
    found = reordered_columns(rows, heads, dim)
    if isinstance(rows, BlockRows) and not isinstance(found, BlockRows):
        return requantized(found, "blocks longer than heads, which are in another order", "ssm_out")
    return found


def by_groups(widths: Sequence[int], groups: int) -> Tensor:
    """Where the rows of the groups are, each with some of every part, in parts of so many rows one below the other."""
    parts = [part.view(groups, -1) for part in torch.split(torch.arange(sum(widths)), list(widths))]
    return torch.cat(parts, dim=1).flatten()


def from_tiles(key_heads: int, value_heads: int) -> Tensor:
    """Where the value heads of the first key head are, then those of the next, in a file that has the first value head
    of each key head, then the second of each."""
    return torch.arange(value_heads).view(-1, key_heads).t().flatten()
