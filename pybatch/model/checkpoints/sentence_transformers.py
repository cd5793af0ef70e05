"""The files that sentence-transformers keeps beside a checkpoint: what follows the model, and prompts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pybatch.model.checkpoints.files import read_json, read_json_list
from pybatch.model.errors import ModelError
from pybatch.model.fields import Fields, short
from pybatch.model.pooling import LAST, METHODS, PoolingConfig

# Keys of 1_Pooling/config.json; newer files have pooling_mode, a method's name or a list of them.
FLAGS = {
    **{f"pooling_mode_{method}": method for method in METHODS},
    **{f"pooling_mode_{method}_tokens": method for method in ("max", "mean", "weightedmean")},
    "pooling_mode_cls_token": "cls",
}


def read_pooling(directory: Path) -> PoolingConfig:
    """Without modules.json the last token's state, normalised. Raises ModelError for a module that is not known."""
    about = Fields(read_json(directory / "config_sentence_transformers.json"), str(directory))
    prompts = {name: text for name, text in about.mapping("prompts").items() if isinstance(text, str)}
    default = about.text("default_prompt_name", None)
    if default is not None and default not in prompts:
        raise ModelError(f"{directory}: default_prompt_name: expected one of {list(prompts)}, got {short(default)}")
    modules = read_json_list(directory / "modules.json")
    methods: tuple[str, ...] = (LAST,)
    normalize, labels = not modules, None
    for module in modules:
        kind, path = _kind(directory, module), _folder(directory, module)
        if kind == "Pooling":
            methods = _methods(path / "config.json")
        elif kind == "Normalize":
            normalize = True
        elif kind == "LogitScore":
            labels = _labels(path / "config.json")
        elif kind != "Transformer":
            raise ModelError(f"{directory / 'modules.json'}: {kind} is not known here")
    return PoolingConfig(
        methods=methods,
        normalize=normalize,
        prompts=prompts,
        default_prompt=default,
        labels=labels,
        stated=bool(modules) and labels is None,
    )


def _kind(directory: Path, module: object) -> str:
    """A module's class, without the package that it is in."""
    kind = module.get("type") if isinstance(module, Mapping) else None
    if not isinstance(kind, str):
        raise ModelError(f"{directory / 'modules.json'}: expected objects with a type, got {short(module)}")
    return kind.rpartition(".")[2]


def _folder(directory: Path, module: Mapping[str, Any]) -> Path:
    """Where a module's files are: in the directory, so that a model names no others."""
    name = module.get("path", "")
    if not isinstance(name, str) or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise ModelError(f"{directory / 'modules.json'}: path: expected a folder of the model, got {short(name)}")
    return directory / name


def _methods(path: Path) -> tuple[str, ...]:
    config = read_json(path)
    given: Any = config.get("pooling_mode")
    if given is None:
        given = [method for flag, method in FLAGS.items() if config.get(flag) is True] or ["mean"]
    named = {given} if isinstance(given, str) else set(given) if isinstance(given, list) else set()
    if not named or not named <= set(METHODS):
        raise ModelError(f"{path}: pooling_mode: expected one of {', '.join(METHODS)} or several, got {short(given)}")
    if config.get("include_prompt") is False:
        raise ModelError(
            f"{path}: include_prompt: expected true, got false: states of prompts are pooled with the rest"
        )
    return tuple(method for method in METHODS if method in named)


def _labels(path: Path) -> tuple[int, int] | None:
    config = Fields(read_json(path), str(path))
    yes, no = (config.integer(f"{name}_token_id", None, low=0, high=1 << 31) for name in ("true", "false"))
    return None if yes is None or no is None else (yes, no)
