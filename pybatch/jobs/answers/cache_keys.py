"""What makes two requests the same."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, fields
from hashlib import blake2b
from json import dumps
from operator import attrgetter
from typing import Any

from pybatch.engine import SamplingParams
from pybatch.engine.kv_policies import KvPolicy, as_json
from pybatch.engine.lora_request import LoRARequest
from pybatch.engine.pooling_params import Params, PoolingParams
from pybatch.engine.request_params import as_int64
from pybatch.engine.sampling_params import GREEDY_TEMPERATURE
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.jobs.fingerprint import adapter_fingerprint

_DRAWS = {"temperature", "top_p", "top_k", "min_p"}  # without effect where greedy
_IN_COMMON = [  # mostly, by many rows; the others have no effect on an answer or are looked at for each row
    field
    for field in fields(SamplingParams)
    if field.name not in {"max_tokens", "truncate_prompt_tokens", "seed", "output_kind", "speculate"}
]
_values_in_common = attrgetter(*(field.name for field in _IN_COMMON))
_MOST_DIGESTS = 1000


class CacheKeys:
    """Makes the keys of requests: 128 bits of the model, the tokens and all that an answer depends on.

    model: its fingerprint, with its precision and KV type. max_model_len, engine_seed: the engine's. A request without
    a seed has one of the engine's seed and its row's index, so that only a row of the same index has the same key.
    """

    def __init__(self, model: str, *, max_model_len: int, engine_seed: int | None) -> None:
        self._model = model
        self._max_model_len = max_model_len
        self._engine_seed = engine_seed or 0
        self._digests: dict[tuple[Any, ...], bytes] = {}

    def key(self, token_ids: Sequence[int], params: Params, index: int) -> bytes:
        """index: the row's, as in Session.add."""
        room = self._max_model_len
        if isinstance(params, PoolingParams):
            data = dumps([self._model, room, asdict(params)]).encode()
            return blake2b(data + b"\0" + array("i", token_ids).tobytes(), digest_size=16).digest()
        if params.truncate_prompt_tokens is not None:
            keep = params.truncate_prompt_tokens
            token_ids = token_ids[-int(room - 1 if keep == -1 else keep) :]
        most = room if params.max_tokens is None else min(len(token_ids) + int(params.max_tokens), room)
        if _is_greedy(params):
            seed = ""
        elif params.seed is not None:
            seed = str(as_int64(int(params.seed)))
        else:
            seed = f"{self._engine_seed}, row {index}"
        data = b"%s %d %s " % (self._digest(params), most, seed.encode())
        return blake2b(data + array("i", token_ids).tobytes(), digest_size=16).digest()

    def _digest(self, params: SamplingParams) -> bytes:
        values = _values_in_common(params)
        try:
            known = self._digests.get(values)
        except TypeError:  # a list or dict among them
            return self._new_digest(params, values)
        if known is None:
            if len(self._digests) >= _MOST_DIGESTS:
                self._digests.clear()
            known = self._digests[values] = self._new_digest(params, values)
        return known

    def _new_digest(self, params: SamplingParams, values: tuple[Any, ...]) -> bytes:
        plain = {
            field.name: params.stop_strings if field.name == "stop" else _plain(value, field.default)
            for field, value in zip(_IN_COMMON, values, strict=True)
            if not (field.name in _DRAWS and _is_greedy(params))
        }
        text = self._model.encode() + b"\0" + dumps(plain).encode()
        return blake2b(text, digest_size=16).digest()


def _is_greedy(params: SamplingParams) -> bool:
    """Or a beam search, of which nothing is drawn either."""
    return params.temperature < GREEDY_TEMPERATURE or params.use_beam_search


def _plain(value: Any, default: object) -> Any:
    """The same for equal values of a field: 1, 1.0 and numpy's, and sets in whatever order."""
    if isinstance(value, KvPolicy):
        return as_json(value)
    if isinstance(value, StructuredOutputsParams):
        return asdict(value)
    if isinstance(value, LoRARequest):
        return adapter_fingerprint(value.lora_path)
    if isinstance(value, dict):
        return sorted((int(token), float(bias)) for token, bias in value.items())
    if isinstance(value, (list, tuple)):
        return sorted({each if isinstance(each, str) else int(each) for each in value})
    if value is None or isinstance(value, str):
        return value
    return type(default)(value) if isinstance(default, (bool, float)) else int(value)
