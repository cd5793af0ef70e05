"""Imports only run downwards: those at the top of a module, in a function, and for types alone."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "pybatch"

# From the top, as in docs/architecture.md. Parts of one line do not import each other. __init__: the names of
# `import pybatch`, whose version all may read.
LAYERS = (
    ("__main__",),
    ("cli",),
    ("__init__",),
    ("bulk",),
    ("serve", "cluster", "prompts"),
    ("jobs",),
    ("latitude",),
    ("api", "telemetry"),
    ("tune",),
    ("engine",),
    ("model",),
    ("ops", "machine"),
    ("_C", "lazy"),
)

Module = tuple[str, ...]  # its path from the package down; a package's own file is __init__


def modules() -> dict[Module, Path]:
    return {file.relative_to(PACKAGE).with_suffix("").parts: file for file in PACKAGE.rglob("*.py")}


def imported(tree: ast.Module) -> Iterator[Module]:
    """What a module imports, or reads of `pybatch`, with the names that it takes from there."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(module), names=names, level=0):
                yield from (tuple(f"{module}.{each.name}".split(".")) for each in names)
            case ast.ImportFrom():
                raise AssertionError("an import is relative")
            case ast.Import(names=names):
                yield from (tuple(each.name.split(".")) for each in names if "." in each.name)
            case ast.Attribute(value=ast.Name(id="pybatch"), attr=attr):
                yield ("pybatch", attr)


def home(name: Module, known: set[Module]) -> Module:
    """The module that has the name, which is a package's __init__ where no other one does."""
    for length in range(len(name), 0, -1):
        if name[:length] in known:
            return name[:length]
        if (*name[:length], "__init__") in known:
            return (*name[:length], "__init__")
    return ("_C",) if name[:1] == ("_C",) else ("__init__",)


def edges() -> Iterator[tuple[Module, Module]]:
    found = modules()
    for module, file in found.items():
        for name in imported(ast.parse(file.read_text())):
            if name[0] == "pybatch" and name[1:] != ("__version__",):
                target = home(name[1:], set(found))
                if target != module:
                    yield module, target


def test_imports_run_down_the_layers() -> None:
    level = {part: number for number, parts in enumerate(LAYERS) for part in parts}
    assert {module[0] for module in modules()} | {"_C"} == set(level)
    upwards = [
        f"{'.'.join(module)} imports {'.'.join(target)}"
        for module, target in edges()
        if module[0] != target[0] and level[module[0]] >= level[target[0]]
    ]
    assert not upwards


def test_parts_of_a_package_do_not_import_each_other_in_a_circle() -> None:
    """On every level: the files and folders of the package, those of each folder, and so on."""
    graph: dict[Module, set[Module]] = {}
    for module, target in edges():
        shared = next((depth for depth, (a, b) in enumerate(zip(module, target, strict=False)) if a != b), 0)
        graph.setdefault(module[: shared + 1], set()).add(target[: shared + 1])
    assert len(graph) > 100
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_the_reader_of_imports_finds_them_all() -> None:
    text = "import pybatch.a\nfrom pybatch import b\ndef f():\n    from pybatch.c.d import e\n    pybatch.g\n"
    names = sorted(imported(ast.parse(text)))
    assert [".".join(name) for name in names] == ["pybatch.a", "pybatch.b", "pybatch.c.d.e", "pybatch.g"]
    known = {("__init__",), ("b", "__init__"), ("c", "__init__"), ("c", "d")}
    assert [home(name[1:], known) for name in names] == [("__init__",), ("b", "__init__"), ("c", "d"), ("__init__",)]
