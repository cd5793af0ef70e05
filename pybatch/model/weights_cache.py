"""Packed weights on a disk, so that a model that has been loaded once is there again as soon as it is mapped."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

import pybatch
from pybatch import ops
from pybatch.machine.own_files import BadFileError, is_abandoned
from pybatch.model.decoder import Decoder
from pybatch.model.role_tensors import Checkpoint
from pybatch.model.rope import RopeConfig
from pybatch.model.tensors import changed, tensors_of
from pybatch.model.weights_file import map_tensors, write_tensors

logger = logging.getLogger(__name__)

SUFFIX = ".weights"


class WeightsCache:
    """A file for each model and precision; a newer one, of a changed checkpoint or another pybatch, takes its place.

    A file that cannot be read, is damaged or another user's is one that is not there; where none can be written the
    model is loaded all the same. There is one warning of either. Any number of processes may share the folder.

    folder: made if it is not there. context: the positions that weights are packed for.
    """

    def __init__(
        self, folder: Path, checkpoint: Checkpoint, dtype: torch.dtype, quantization: str | None, context: int
    ) -> None:
        self.folder = folder
        files = [path.resolve() for path in checkpoint.files()]
        self._model = _digest(str(files), dtype, quantization)
        about = [(path.name, *_identity(path)) for path in files]
        config = replace(checkpoint.config, name="", eos_token_ids=(), bos_token_id=None)
        self._key = _digest(about, config, dtype, quantization, context, pybatch.__version__, _code())
        self.path = folder / f"{self._model}-{self._key}{SUFFIX}"

    def load(self, plan: Decoder, rotary: Mapping[RopeConfig, Tensor], *, check: bool = True) -> Decoder | None:
        """The decoder with weights mapped from the file; None if there is none that can be used. plan: a decoder whose
        tensors have shapes and dtypes only (see WeightPlan). check: see weights_file.map_tensors."""
        try:
            mapped = iter(map_tensors(self.path, self._key, weights_of(plan), check=check))
        except FileNotFoundError:
            return None
        except (BadFileError, OSError, ValueError) as error:
            logger.warning("weights_cache_dir: %s is not used, and made again: %s", self.path, error)
            return None
        return with_weights(plan, rotary, lambda _: next(mapped))

    def store(self, decoder: Decoder) -> bool:
        """Returns whether the file could be written."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._delete_others()
            write_tensors(self.path, self._key, weights_of(decoder))
        except OSError as error:
            logger.warning("weights_cache_dir: weights are not kept: %s", error)
            return False
        return True

    def _delete_others(self) -> None:
        """First, so that there is room. Processes that have one mapped keep it."""
        with os.scandir(self.folder) as entries:
            for file in entries:
                with suppress(OSError):
                    older = file.name.startswith(f"{self._model}-") and file.name.endswith(SUFFIX)
                    modified = file.stat(follow_symlinks=False).st_mtime
                    if (older and file.name != self.path.name) or is_abandoned(file.name, modified, time.time()):
                        os.unlink(file.path)


def weights_of(decoder: Decoder) -> list[Tensor]:
    """All but the rotary tables, in the order in which with_weights takes them."""
    return tensors_of(decoder.parts)


def with_weights(decoder: Decoder, rotary: Mapping[RopeConfig, Tensor], change: Callable[[Tensor], Tensor]) -> Decoder:
    """A copy whose tensors are what `change` makes of the decoder's, one after another."""
    embedding, layers, head, score, token_inputs, positions = changed(decoder.parts, Tensor, change)
    return Decoder(
        decoder.config,
        decoder.dtype,
        embedding=embedding,
        layers=layers,
        head=head,
        rotary=rotary,
        score=score,
        token_inputs=token_inputs,
        positions=positions,
    )


def _identity(path: Path) -> tuple[int, ...]:
    """Another after every change: reading all of a large file would take longer than loading it."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def _code() -> list[bytes]:
    """Of all that packs weights: their layout has no number that somebody could forget to change."""
    package = Path(ops.__file__).parents[1]
    files = [*package.glob("ops/*.py"), *package.glob("*.so"), *package.glob("model/**/*.py")]
    return [blake2b(path.read_bytes(), digest_size=16).digest() for path in sorted(files)]


def _digest(*about: object) -> str:
    return blake2b(repr(about).encode(), digest_size=16).hexdigest()
