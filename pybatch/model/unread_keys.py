"""Keys of a config.json or a GGUF file that are not read here: those that change the numbers are refused by name."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pybatch.model.errors import ModelError, one_line
from pybatch.model.fields import short

logger = logging.getLogger(__name__)

# What says how a model was trained, saved, classified with or called, and not what it computes from tokens.
HARMLESS = re.compile(
    r"""
    _.* | transformers.* | architectures | model_type | auto_map | name_or_path | torch_dtype | dtype | .*version.*
    | .*(dropout|pdrop|layerdrop|drop_rate).* | .*(initializer|init_std|init_range|std_dev|init_device|init_method).*
    | .*(_coef|_loss|loss_weight|loss_coefficient) | use_cache | .*gradient_checkpointing.* | return_dict.*
    | output_(attentions|hidden_states|past|router_logits|scores) | .*softmax_in_fp32
    | id2label | label2id | num_labels | problem_type | finetuning_task | task_specific_params | classifier_.*
    | .*token_ids? | .*token_index | tokenizer_class | prefix | (begin_)?suppress_tokens | forced_.*
    | num_logits_to_keep | is_decoder | is_llama_config | pruned_heads | tie_encoder_decoder
    | cross_attention_hidden_size | add_cross_attention
    | temperature | top_k | top_p | typical_p | do_sample | max_length | min_length | num_beams | num_beam_groups
    | early_stopping | repetition_penalty | length_penalty | diversity_penalty | no_repeat_ngram_size | .*no_repeat.*
    | encoder_no_repeat_ngram_size | num_return_sequences | bad_words_ids | remove_invalid_values | use_bfloat16
    | exponential_decay_length_penalty | pretraining_tp | .*_tp_plan | .*_pp_plan | tf_legacy_loss | torchscript
    | seq(uence)?_length | max_seq(uence)?_len(gth)? | model_max_length | max_sequence_length | use_flash_.*
    | .*attn_implementation.* | unsloth_.* | .*mtp.* | num_nextn_predict_layers
    | resid_pdrop | chunk_size_feed_forward | hidden_dropout.* | embd_pdrop
    | save_.* | push_to_hub.* | license.* | trust_remote_code | .*fused_.* | summary_.* | use_parallel_embedding
    | cache_implementation | pooling_type | tensor_data_layout | .*nextn.*
    """,
    re.VERBOSE,
)
# Names that other architectures, and code of a model's own, give to what changes the numbers.
MEANINGFUL = re.compile(
    r"""
    quantiz | multiplier | scal(e|ing) | soft_?cap | clip | clamp | expert | moe | router | rout(ed|ing) | lora_rank
    | mamba | ssm
    | (^|_)conv | mup | no_rope | nope | use_rope | rope | rotary | qk_?norm | qk_layer_?norm | parallel | alibi
    | bidirectional | causal | sink | latent | linear_(attn|num|key|value|conv) | shared_layers | temperature_tuning
    | attention_chunk | sliding_window | window_size | sandwich | (pre|post)_norm | altup | laurel | sparsity | loop
    | recurren | layer_norm | norm_(eps|type|bias|before) | hidden_activation | (out|use|qkv|head|linear|norm)_bias
    | swiglu | position_(embedding|bias|encoding) | (vision|audio|text|encoder|decoder|attn|ffn)_config
    | index_ | indexer | ^hc_ | cycles | layer_group | embedding_size | projector | (^|_)gat(e|ed|ing) | pooling
    | prefix_lm | is_encoder | ngpt | residual_in | pre_attn_scalar | attn_(logit|scale) | dense_replace | layer_indices
    | block_type | layers_block | value_scale | swa_ | (local|global)_(att|layer|config) | lambda | keep_window
    | learned | n_group | head_dim | head_size | num_(heads|layers|kv_heads)$ | n_(head|layer|embd|inner)s?$
    | (ffn|kv|q)_(dim|channels|rank) | d_model
    """,
    re.VERBOSE,
)
SCALES = re.compile(r"multiplier|scal(e|ing)|factor|alpha")  # 1 leaves the numbers as they are


def check_unread_keys(config: Mapping[str, Any], read: Collection[str], head_dim: int, where: str) -> None:
    """Raises ModelError for a key that would change what the model computes; logs one warning that names the keys that
    nothing is known of. A value that leaves the numbers as they are (null, false, zero, a scale of one) passes."""
    unknown = []
    for key, value in config.items():
        if key in read or HARMLESS.fullmatch(key) or _is_neutral(key, value, head_dim):
            continue
        if MEANINGFUL.search(key):
            raise ModelError(f"{where}: {key} = {short(value)} changes what the model computes and is not known here")
        unknown.append(key)
    if unknown:
        logger.warning("%s: these keys are not read: %s", where, one_line(", ".join(sorted(unknown))))


def _is_neutral(key: str, value: Any, head_dim: int) -> bool:
    if value is None:
        return True
    neutral = SPECIAL.get(key)
    if neutral is not None:
        return neutral(value, head_dim)
    if value is False or value in (0, "", [], {}):
        return True
    return not isinstance(value, bool) and value == 1 and SCALES.search(key) is not None


def _is_attention_scale(value: Any, head_dim: int) -> bool:
    return isinstance(value, float) and head_dim > 0 and math.isclose(value, head_dim**-0.5, rel_tol=1e-6)


SPECIAL: dict[str, Callable[[Any, int], bool]] = {
    "attention_multiplier": _is_attention_scale,
    "attn_scale": _is_attention_scale,
    "query_pre_attn_scalar": lambda value, head_dim: bool(value == head_dim),
    "position_embedding_type": lambda value, _: value in ("rope", "rotary", "absolute"),  # absolute: a class default
    "use_rope": lambda value, _: value is True,
    "scale_attn_weights": lambda value, _: value is True,
    "is_causal": lambda value, _: value is True,
    "causal": lambda value, _: value is True,
    "attention.causal": lambda value, _: value is True,  # these two of GGUF files
    "attention.scale": _is_attention_scale,
}
