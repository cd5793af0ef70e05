"""What makes two jobs the same job: everything that their answers depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from pybatch.engine.kv_policies import as_json
from pybatch.jobs.sources.json_values import json_value

WHOLE = 128 << 20  # bytes; of a larger file the size, the head, the tail and samples between them count
PART = 4 << 20
SAMPLE, EVERY = 16 << 10, 4 << 20  # bytes

Fingerprint = dict[str, Any]
"""Names, as a user knows them, to values in JSON's types."""


def model_fingerprint(path: Path) -> str:
    """A hash of a GGUF file, or of a model directory's weights, settings, tokenizer and chat template.

    Files up to 128 MiB count whole, larger ones by their size, first and last 4 MiB and 16 KiB of every 4: a hash of
    100 GB would take minutes, and training that leaves embeddings alone changes neither head nor tail. Names count,
    dates and places do not. Raises OSError if a file cannot be read.
    """
    total = blake2b(digest_size=16)
    for name, file in model_files(path):
        total.update(f"{name}\0{file_digest(file)}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def model_files(path: Path) -> Iterator[tuple[str, Path]]:
    if path.is_file():
        yield "", path
        return
    for file in sorted([*path.iterdir(), *path.glob("[0-9]*_*/config.json")]):  # those of sentence-transformers
        if file.is_file() and file.suffix in (".json", ".safetensors", ".jinja", ".model", ".txt", ".gguf"):
            yield str(file.relative_to(path)), file


def argument_fingerprint(name: str, value: Any) -> str:
    """An engine's argument as answers depend on it: of a file or folder that is read what it holds, not where it is.

    Raises ModelError for a tokenizer or an adapter that is not to be found."""
    if name == "adapter":
        return adapter_fingerprint(value)
    if name == "lora_modules":
        from pybatch.api.lora_names import lora_modules
        from pybatch.model.checkpoints.find import of_argument

        with of_argument(name):
            return "; ".join(f"{each} {adapter_fingerprint(path)}" for each, path in lora_modules(value).items())
    if name == "tokenizer":
        from pybatch.model.checkpoints.find import find_tokenizer

        return model_fingerprint(find_tokenizer(value))
    if name == "generation_config" and (file := Path(value) / "generation_config.json").is_file():
        return file_digest(file)
    return str(value)


def sampling_fingerprint(name: str, value: Any) -> Any:
    """A sampling parameter as the journal gives it back: in JSON a dict's keys are text, and a tuple is a list."""
    if name == "kv_policy":
        return as_json(value)
    return json_value(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def adapter_fingerprint(path: str | Path) -> str:
    """Of a LoRA adapter's content. Raises ModelError for one that is not to be found."""
    from pybatch.model.checkpoints.find import find_adapter

    return model_fingerprint(find_adapter(path))


def file_digest(path: Path) -> str:
    size = path.stat().st_size
    total = blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        if size <= WHOLE:
            while part := file.read(1 << 20):
                total.update(part)
        else:
            total.update(file.read(PART))
            for place in range(PART, size - PART, EVERY):
                file.seek(place)
                total.update(file.read(SAMPLE))
            file.seek(-PART, 2)
            total.update(file.read(PART))
    return total.hexdigest()


def content_digest(value: Any) -> int:
    """64 bits of a hash of a value in JSON's types."""
    text = json.dumps(value, sort_keys=True, default=str).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The name, the earlier and the present value, as text, of what differs."""
    return [
        (name, shown(before.get(name)), shown(now.get(name)))
        for name in {**before, **now}
        if before.get(name) != now.get(name)
    ]


def shown(value: Any) -> str:
    return "-" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
