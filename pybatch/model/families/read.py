"""From a config.json to a ModelConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pybatch.model.config import MAX_VOCAB, AttentionConfig, LayerConfig, ModelConfig, merge_ids
from pybatch.model.errors import ModelError
from pybatch.model.families import BY_CLASS, FAMILIES, SAME
from pybatch.model.families.family import Family
from pybatch.model.families.source import HFSource, Source
from pybatch.model.fields import Fields, short
from pybatch.model.rope import NO_ROPE
from pybatch.model.unread_keys import check_unread_keys

QUOTES = "\"'"
CLASSIFIER = "ForSequenceClassification"
OTHER_HEADS = (CLASSIFIER, "Model")  # ends of the names of classes that share a family's layers
HEADS = ("ForCausalLM", "LMHeadModel")
MAX_LABELS = 1 << 16


def config_from_hf(
    config: Mapping[str, Any], generation_config: Mapping[str, Any] | None = None, *, name: str = "model"
) -> ModelConfig:
    """Reads a config.json, and the end-of-sequence ids of a generation_config.json.

    Raises ModelError for an architecture, activation or rope type that is not among those known, for values that no
    model has, and for keys that would change the numbers and are not known here.
    """
    whole = Fields(config, f"config.json of {name}")
    config = text_config(config)
    family = _family(Fields(config, whole.where), name)
    given = {key: value for key, value in config.items() if value is not None or key not in family.defaults}
    source = HFSource({**family.defaults, **given}, whole.where, family.keys)
    ends = Fields(generation_config or {}, f"generation_config.json of {name}")
    bos = source.ids("bos_token_id")
    found = config_of(
        family,
        source,
        name=name,
        vocab_size=source.integer("vocab_size", high=MAX_VOCAB),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=merge_ids(*(fields.ids("eos_token_id") for fields in (source, whole, ends))),
        num_labels=_num_labels(whole),
    )
    check_unread_keys(config, source.read, found.attentions[0].own_head_dim, source.where)
    return found


def text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the language model in one that sees or hears too, whose other parts are left out."""
    inner = config.get("text_config")
    if _is_known(config) or not isinstance(inner, Mapping) or not _is_known(inner):
        return config
    outer = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return {**inner, **outer}


def _is_known(config: Mapping[str, Any]) -> bool:
    kind = config.get("model_type")
    return isinstance(kind, str) and SAME.get(kind, kind) in FAMILIES


def config_of(
    family: Family,
    source: Source,
    *,
    name: str,
    vocab_size: int,
    bos_token_id: int | None,
    eos_token_ids: tuple[int, ...],
    num_labels: int = 0,
) -> ModelConfig:
    shape = family.shape(source)
    layers = tuple(_with_filled_heads(layer) for layer in shape.layers)
    attentions = [layer.mixer for layer in shape.layers if isinstance(layer.mixer, AttentionConfig)]
    ropes = {attention.rope for attention in attentions} - {NO_ROPE} or {NO_ROPE}
    return ModelConfig(
        name=name,
        family=family.model_type,
        architecture=family.architecture,
        vocab_size=vocab_size,
        hidden_size=source.hidden_size(),
        layers=layers,
        norm=shape.norm,
        max_position=min([source.longest(rope, shape.context) for rope in ropes], default=shape.context),
        scales=shape.scales,
        tie_word_embeddings=shape.tie_word_embeddings,
        head_bias=shape.head_bias,
        learned_positions=shape.learned_positions,
        token_vocab=shape.token_vocab,
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
        num_labels=num_labels,
    )


def _with_filled_heads(layer: LayerConfig) -> LayerConfig:
    """With heads that the kernels take."""
    return replace(layer, mixer=layer.mixer.filled()) if isinstance(layer.mixer, AttentionConfig) else layer


def unknown_architecture(architecture: str, name: str, known: Mapping[str, Family]) -> ModelError:
    return ModelError(f"{name} is of architecture {architecture}, which is not known here; known: {', '.join(known)}")


def _family(fields: Fields, name: str) -> Family:
    """The family that `model_type` names, as transformers itself has it: people rename classes. The class in
    `architectures` decides alone where there is no model_type, and must be a known one where there is."""
    kind = fields.text("model_type", None)
    kind = None if kind is None else SAME.get(kind, kind)
    classes = fields.get("architectures") or []
    if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
        raise ModelError(f"{fields.where}: architectures: expected a list of names, got {short(classes)}")
    if kind is None and not classes:
        raise ModelError(f"{fields.where}: expected model_type, one of {', '.join(FAMILIES)}")
    if kind is not None and kind not in FAMILIES:
        raise unknown_architecture(f"model_type {short(kind)}", name, FAMILIES)
    named = _causal_lm(classes[0]) if classes else ""
    if classes and named not in BY_CLASS:
        raise unknown_architecture(short(classes[0]).strip(QUOTES), name, BY_CLASS)
    return FAMILIES[kind] if kind is not None else BY_CLASS[named]


def _causal_lm(name: str) -> str:
    """The class that has these layers and a projection to the vocabulary."""
    end = next((end for end in OTHER_HEADS if name.endswith(end) and name not in BY_CLASS), None)
    if end is None:
        return name
    stem = name.removesuffix(end)
    return next((f"{stem}{head}" for head in HEADS if f"{stem}{head}" in BY_CLASS), name)


def _num_labels(fields: Fields) -> int:
    """0 unless the model classifies texts."""
    classes = fields.get("architectures") or [""]
    if not classes[0].endswith(CLASSIFIER):
        return 0
    return fields.integer("num_labels", len(fields.mapping("id2label")) or 2, high=MAX_LABELS, nullable=True)
