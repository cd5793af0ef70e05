"""The prefix files that an engine's settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from pybatch.engine.config import EngineConfig
from pybatch.engine.disk.fingerprint import fingerprint
from pybatch.engine.disk.prefix_files import PrefixFiles
from pybatch.engine.execution.kv_cache import KvCache
from pybatch.model.decoder import Decoder


def make_prefix_files(
    config: EngineConfig, decoder: Decoder, kv_cache: KvCache, seconds_per_token: Callable[[], float]
) -> PrefixFiles | None:
    """None where there is no prefix_cache_dir. Raises ValueError if nothing can be written there."""
    if config.prefix_cache_dir is None:
        return None
    try:
        return PrefixFiles(
            Path(config.prefix_cache_dir),
            fingerprint(decoder, kv_cache.layout),
            kv_cache,
            max_bytes=int(config.prefix_cache_space * 2**30),
            block_size=config.block_size,
            seconds_per_token=seconds_per_token,
        )
    except OSError as error:
        where = f"{error.filename}: {error.strerror}"
        raise ValueError(f"prefix_cache_dir: expected a folder to write to: {where}") from error
