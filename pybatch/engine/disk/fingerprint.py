"""What the contents of KV blocks depend on besides their tokens, as one name."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from pybatch import ops
from pybatch.engine.disk.block_file import FORMAT
from pybatch.engine.execution.kv_cache import KvLayout
from pybatch.machine.facts import arithmetic
from pybatch.model.decoder import Decoder
from pybatch.model.lora_linear import LoraLinear, without_adapters
from pybatch.model.tensors import changed

_POSITIONS = 64  # of the rotary table: the others follow from them


def fingerprint(decoder: Decoder, layout: KvLayout) -> str:
    """32 hexadecimal digits, equal for engines whose blocks of equal prefixes have equal bytes: a digest of all weights
    as they are in memory, the model's shape, the layout of a block, the kernels and the instructions that they use."""
    shape = replace(decoder.config, name="", eos_token_ids=(), bos_token_id=None, max_position=0)
    about = [f"{FORMAT} {layout} {shape} {decoder.dtype} {arithmetic(decoder.device, decoder.dtype)}"]
    tables = [table[:_POSITIONS] for table in decoder.rotary.values()]
    libraries = sorted(Path(ops.__file__).parents[1].glob("*.so"))
    digests: list[bytes] = []
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        for part in chain([decoder.embedding], decoder.layers_in_turn(), [tables]):
            tensors: list[Tensor] = []
            for each in _contents(changed(part, LoraLinear, without_adapters)):  # blocks of those that have one say so
                if isinstance(each, Tensor):
                    tensors.append(each)
                else:
                    about.append(each)
            digests += threads.map(_of_tensor, tensors)
        digests += threads.map(_of_file, libraries)
    return blake2b("\n".join(about).encode() + b"".join(digests), digest_size=16).hexdigest()


def _contents(part: object) -> Iterator[Tensor | str]:
    """The tensors that a part of a model has, and what else it is made of as text."""
    if isinstance(part, Tensor):
        yield f"{part.dtype} {tuple(part.shape)}"
        yield part
    elif isinstance(part, list | tuple):
        for each in part:
            yield from _contents(each)
    elif is_dataclass(part):
        yield type(part).__name__
        for field in fields(part):
            yield from _contents(getattr(part, field.name))
    else:
        yield getattr(part, "__qualname__", repr(part))


def _of_tensor(tensor: Tensor) -> bytes:
    content = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
    return blake2b(content.data, digest_size=16).digest()


def _of_file(path: Path) -> bytes:
    return blake2b(path.read_bytes(), digest_size=16).digest()
